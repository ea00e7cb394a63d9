"""Optimizers by name: what `create` and the command line know, and how to register more."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from inspect import signature
from typing import Any, Final

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.optimizer.ars2_neo import ARS2Neo
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.hyperparameters import DEFAULTS, checked_number, period_of
from lossscope.optimizer.rule_optimizer import RuleOptimizer
from lossscope.optimizer.update.curvature_rules import RULES
from lossscope.optimizer.update.matrix_view import track_of
from lossscope.optimizer.update.routing import routing
from lossscope.optimizer.update.rule import Need, Rule

__all__ = ["ENTRIES", "Entry", "Groups", "create", "names", "nearest", "register", "settings"]

Groups = list[dict[str, Any]]

_LARGEST_SIDE: Final = 8192  # of a dense layer whose factors are kept: the square of a vocabulary has no place


@dataclass(frozen=True)
class Entry:
    """A registered optimizer."""

    words: str  # one-line description
    source: str
    make: Callable[..., Optimizer]  # (params, **settings)
    usual: Mapping[str, Any] = field(default_factory=dict)  # settings with defaults; None: the default of its base
    cuts: bool = False  # True if `make` takes groups, with those of convolutions marked, since it needs matrix views
    required: tuple[str, ...] = ()  # settings without a default
    dense: bool = False  # True if `make` takes groups, with what is no weight of a dense layer marked as vectors


ENTRIES: Final[dict[str, Entry]] = {}


def register(name: str, what: Rule | Entry) -> None:
    """Register an optimizer under a name, for `create` and the command line.

    An update rule is all that a new optimizer needs: `RuleOptimizer` takes its steps, every ascent (`sam`, ...) can use
    it as `base`, and recording, resuming and reports read its declarations. An `Entry` registers any other
    `torch.optim.Optimizer`.

    Args:
        name: A new name.
        what: The rule, or the entry.

    Raises:
        OptimizerError: The name is taken.
    """
    if name in ENTRIES:
        raise OptimizerError(f"an optimizer {name!r} is registered already ({ENTRIES[name].words}): use another name")
    if isinstance(what, Rule):
        RULES[name] = what
        _add_rule(name, what)
    else:
        ENTRIES[name] = what


def names() -> tuple[str, ...]:
    """Return the registered names."""
    return tuple(ENTRIES)


def settings(name: str) -> tuple[str, ...]:
    """Return the settings that `create(name, ...)` accepts.

    Raises:
        OptimizerError: The name is unknown; the message suggests the nearest ones.
    """
    entry = _entry(name)
    return (*entry.required, *entry.usual)


def create(name: str, parameters: nn.Module | Iterable[tuple[str, Tensor]], **overrides: Any) -> Optimizer:
    """Return a new optimizer of that name, with its default settings except for `overrides`.

    The shape of a parameter decides its track. Weights of one-dimensional convolutions have three dimensions, as have
    attention heads: if `parameters` is a model and the optimizer needs matrix views, these weights get a group with
    `convolution=True` after the others.

    Args:
        name: One of `names()`.
        parameters: A model, or its `named_parameters()`, which do not show which ones are convolutions.
        overrides: Settings of that optimizer, such as `lr` or `rho`.

    Raises:
        OptimizerError: The name or a setting is unknown (the message suggests the nearest ones), a required setting is
            missing, or a setting is out of bounds.
    """
    entry = _entry(name)
    known = settings(name)
    for setting in overrides:
        if setting not in known:
            raise OptimizerError(f"optimizer {name} has no setting {setting!r}{nearest(setting, known)}")
    trainable = [(label, p) for label, p in _named(name, parameters) if p.requires_grad]
    if not trainable:
        raise OptimizerError(f"no parameter requires a gradient; {name} has nothing to optimize")
    try:
        group = _dense_groups if entry.dense else _groups if entry.cuts else None
        return entry.make(trainable if group is None else group(parameters, trainable), **overrides)
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"optimizer {name}: {error}") from error
    except (IndexError, KeyError, RuntimeError) as error:
        raise OptimizerError(f"optimizer {name} does not accept its settings {overrides}: {error}") from error


def _named(name: str, parameters: Any) -> list[tuple[str, Tensor]]:
    """Return `(name, parameter)` pairs, or raise an error for anything else."""
    if isinstance(parameters, nn.Module):
        return list(parameters.named_parameters())
    found = list(parameters) if isinstance(parameters, Iterable) else [parameters]
    for pair in found:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            what = "bare parameters" if isinstance(pair, Tensor) else type(pair).__name__
            raise OptimizerError(f"create({name!r}, ...) takes a model or its named_parameters(), not {what}")
    return found


def _groups(parameters: Any, trainable: list[tuple[str, Tensor]]) -> Groups:
    """Return the parameters as one group, and the weights of a model's one-dimensional convolutions as another."""
    routes = routing(parameters).routes if isinstance(parameters, nn.Module) else ()
    cut = {route.name for route in routes if route.convolution and route.parameter.ndim == 3}
    rest = {"params": [(label, p) for label, p in trainable if label not in cut]}
    convolutions = {"params": [(label, p) for label, p in trainable if label in cut], "convolution": True}
    return [group for group in (rest, convolutions) if group["params"]]


def _dense_groups(parameters: Any, trainable: list[tuple[str, Tensor]]) -> Groups:
    """Return the weights of dense layers as one group, and all other parameters as vectors.

    Without a model every matrix counts as such a weight. With one, a weight counts if its layer is called as a module
    (the output layer of `torch.nn.MultiheadAttention` is not), if nothing else has it, and if its sides are moderate.
    """
    dense = {label for label, p in trainable if p.ndim == 2}
    if isinstance(parameters, nn.Module):
        dense &= {label for label, p in trainable if p in _dense_weights(parameters)}
    if not dense:
        raise OptimizerError(
            "no weight of a dense layer (torch.nn.Linear) requires a gradient, so nothing takes its step"
        )
    rest = [pair for pair in trainable if pair[0] not in dense]
    groups: Groups = [{"params": [pair for pair in trainable if pair[0] in dense]}, {"params": rest, "track": "vector"}]
    return [group for group in groups if group["params"]]


def _dense_weights(model: nn.Module) -> set[nn.Parameter]:
    """Return the weights of dense layers that are called as modules and that no other module shares."""
    owners = [(module, p) for module in model.modules() for p in module._parameters.values() if p is not None]
    inside = {
        child for module in model.modules() if isinstance(module, nn.MultiheadAttention) for child in module.children()
    }
    shared = {p for module, p in owners if not isinstance(module, nn.Linear) or module in inside}
    return {p for _, p in owners if p.ndim == 2 and max(p.shape) <= _LARGEST_SIDE} - shared


def _entry(name: str) -> Entry:
    if name not in ENTRIES:
        raise OptimizerError(f"unknown optimizer {name!r}{nearest(name, names())}")
    return ENTRIES[name]


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the nearest known words, or all of them."""
    close = get_close_matches(word, list(words), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(words)}"


_INJECTING: Final = ("k", "alpha", "shear")
_ADAPTIVE: Final = ("aga_beta", "aga_lambda", "aga_gamma", "trigger")
_ASCENDING: Final = ("rho", "perturbation", "seed")
# Settings used by each mode. Others are rejected rather than silently ignored.
_OF_MODE: Final[dict[str, tuple[str, ...]]] = {
    "base": (),
    "sync": _ASCENDING,
    "lazy": (*_ASCENDING, *_INJECTING),
    "aga": (*_ASCENDING, *_INJECTING, *_ADAPTIVE),
    "timer": (*_ASCENDING, *_INJECTING, "aga_lambda", "replay_counts", "replay_window"),
}
_OF_SOME_MODES: Final = {name for read in _OF_MODE.values() for name in read}
_OF_ARS2: Final = tuple(
    name for name in signature(ARS2Neo).parameters if name not in {"params", *_OF_SOME_MODES, "surrogate", "mode"}
)

# Optimizers of one pass, which an ascent can use as base: functions of (params, **settings); and their settings.
_BASES: Final[dict[str, Callable[..., Optimizer]]] = {}
_BASE_SETTINGS: Final[dict[str, None]] = {}


def _add_base(name: str, make: Callable[..., Optimizer]) -> None:
    """Let every ascent use a registered optimizer as base."""
    _BASES[name] = make
    _BASE_SETTINGS.update(dict.fromkeys(settings(name)))


def _add_ars2(
    name: str,
    words: str,
    mode: Any,
    source: str = "the public ARS2-Neo",
    changed: Mapping[str, Any] | None = None,
    **fixed: Any,
) -> None:
    """Register ARS2-Neo in one mode, with some defaults changed and some settings fixed."""
    read = [setting for setting in (*_OF_ARS2, *_OF_MODE[mode]) if setting not in fixed]
    own = changed or {}
    period = {"k": period_of(mode, None)} if "k" in _OF_MODE[mode] else {}
    usual = {**{setting: DEFAULTS[setting] for setting in read}, **period, **own}
    ENTRIES[name] = Entry(words, source, partial(ARS2Neo, mode=mode, **fixed, **own), usual, cuts=True)
    if mode == "base":
        _add_base(name, partial(ARS2Neo, **fixed, **own))


def _add_rule(name: str, rule: Rule) -> None:
    """Register the optimizer that steps by a rule and never ascends."""
    usual = {"lr": rule.lr, "weight_decay": rule.weight_decay, **rule.settings}
    usual |= {} if rule.vector_lr is None else {"vector_lr": rule.vector_lr}
    make = partial(_rule_optimizer, rule=name)
    dense = rule.needs is Need.LAYER_FACTORS
    ENTRIES[name] = Entry(rule.words, rule.source, make, usual, rule.orthogonalizes, rule.required, dense)
    if rule.needs is None:
        _add_base(name, make)


def _rule_optimizer(trainable: Any, *, rule: str, **chosen: Any) -> RuleOptimizer:
    """Return the optimizer of a rule; vectors get their own group if they have their own learning rate."""
    vector_lr = chosen.pop("vector_lr", RULES[rule].vector_lr)
    if vector_lr is None:
        return RuleOptimizer(trainable, rule, **chosen)
    checked_number("vector_lr", vector_lr)  # a group calls it lr

    def of(group: dict[str, Any], track: str) -> list[tuple[str, Tensor]]:
        return [(label, p) for label, p in group["params"] if track_of({"track": None, **group}, p) == track]

    matrices = [{**group, "params": of(group, "matrix")} for group in trainable]
    tracks = {"track": "vector"} if any("track" in group for group in trainable) else {}
    vectors = {"params": [pair for group in trainable for pair in of(group, "vector")], "lr": vector_lr, **tracks}
    return RuleOptimizer([group for group in (*matrices, vectors) if group["params"]], rule, **chosen)


def _add_ascent(name: str, words: str, source: str, **fixed: Any) -> None:
    """Register an ascent that can be combined with any optimizer of one pass, given as `base`."""
    free: dict[str, Any] = {key: fixed[key] for key in ("rho", "alpha", "k") if key in fixed}
    own: dict[str, Any] = {"base": "sgd", "lr": None, "weight_decay": None, **free}
    usual = ChainMap(own, _BASE_SETTINGS)  # rules that are registered later add their settings
    ENTRIES[name] = Entry(words, source, partial(_ascended, fixed=fixed, free=free), usual, cuts=True)


def _ascended(
    trainable: Groups, *, fixed: Mapping[str, Any], free: Mapping[str, Any], base: str = "sgd", **chosen: Any
) -> Optimizer:
    """Return the base optimizer with an ascent before its step."""
    if not isinstance(base, str) or base not in _BASES:
        raise OptimizerError(f"base={base!r} must be an optimizer of one pass{nearest(str(base), _BASES)}")
    known = {*settings(base), *free}
    for setting in chosen:
        if setting not in known:
            raise OptimizerError(f"base {base} has no setting {setting!r}{nearest(setting, sorted(known))}")
    return _BASES[base](trainable, **{**fixed, **chosen})


for _name, _declared in RULES.items():
    _add_rule(_name, _declared)
_add_ars2("adarmsuon", "AdaRMSuon: ARS2-Neo's kernel without any ascent", "base", "the ARS repository")
_add_ars2("ars2-base", "ARS2-Neo, one pass per step", "base")
_add_ars2("ars2-sync", "ARS2-Neo, two passes every step", "sync")
_add_ars2("ars2-lazy", "ARS2-Neo, two passes every k steps, shear injected in between", "lazy")
_add_ars2("ars2-aga", "ARS2-Neo, two passes when the gradient turns against the shear", "aga")
_add_ars2(
    "ars", "ARS: AdaRMSuon with an ascent at every step, the predecessor", "sync", "the ARS repository", {"rho": 0.05}
)
_add_ascent("sam", "SAM with any base", "Foret et al. (2021)", mode="sync", perturbation="sam", rho=0.05)
_add_ascent("asam", "ASAM with any base", "Kwon et al. (2021)", mode="sync", perturbation="asam", rho=0.5)
_add_ascent(
    "gsam",
    "GSAM with any base",
    "Zhuang et al. (2022)",
    mode="sync",
    perturbation="sam",
    rho=0.05,
    surrogate="gsam",
    alpha=0.4,
)
_add_ascent(
    "looksam", "LookSAM with any base", "Liu et al. (2022)", mode="lazy", perturbation="sam", rho=0.1, alpha=0.7, k=5
)
_add_ars2(
    "adamw@rms",
    "AdamW's direction with exactly the step size of ars2-base: lr |O|_F A for a matrix",
    "base",
    "a control of this package",
    orthogonalize=False,
)
_add_ars2(
    "ars2-timer",
    "ARS2-Neo, two passes at random, at the rate at which aga's trigger fires on noise",
    "timer",
    "a control of this package. To match a recorded aga run, choose aga_lambda so that Phi(-aga_lambda) equals its "
    "trigger probability per step before the cap (`lossscope report dynamics`), and set alpha to the mean of its "
    "steps.alpha; or give the numbers of its second gradients window by window as replay_counts and replay_window",
)
_add_ars2(
    "ars2-random",
    "ARS2-Neo, two passes every step, each tensor moved by rho in a random direction",
    "sync",
    "a control of this package",
    perturbation="random",
)
