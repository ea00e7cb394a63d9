"""Optimizers by name."""

from __future__ import annotations

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
from lossscope.optimizer.update.matrix_view import track_of
from lossscope.optimizer.update.routing import routing
from lossscope.optimizer.update.rules import RULES

__all__ = ["ENTRIES", "Entry", "Groups", "create", "names", "nearest", "register", "settings"]

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """An optimizer that `create` knows."""

    words: str  # what it is, in a line
    source: str
    make: Callable[..., Optimizer]  # (params, **settings)
    usual: Mapping[str, Any] = field(default_factory=dict)  # every setting it accepts; None: its base's usual value
    cuts: bool = False  # whether it cuts tensors into matrices: `make` then gets groups, that of convolutions marked


ENTRIES: Final[dict[str, Entry]] = {}


def register(name: str, entry: Entry) -> None:
    """Let `create` know an optimizer.

    Args:
        name: New.
        entry: What it is.

    Raises:
        OptimizerError: The name is taken.
    """
    if name in ENTRIES:
        raise OptimizerError(
            f"an optimizer {name!r} is registered already ({ENTRIES[name].words}): choose another name"
        )
    ENTRIES[name] = entry


def names() -> tuple[str, ...]:
    """The names `create` knows."""
    return tuple(ENTRIES)


def settings(name: str) -> tuple[str, ...]:
    """The settings that `create(name, ...)` accepts.

    Raises:
        OptimizerError: The name does not exist; the nearest ones are told.
    """
    return tuple(_entry(name).usual)


def create(name: str, parameters: nn.Module | Iterable[tuple[str, Tensor]], **overrides: Any) -> Optimizer:
    """The optimizer of that name, with its usual settings but for `overrides`.

    Shape alone decides the track. Weights of one-dimensional convolutions have three dimensions, as heads of attention
    do: of a model, those of an optimizer that cuts matrices get a group with `convolution=True`, behind the others.

    Args:
        name: One of `names()`.
        parameters: A model, or its `named_parameters()`, which do not say what is a convolution.
        overrides: Settings of that optimizer, such as `lr` or `rho`.

    Raises:
        OptimizerError: The name or a setting does not exist (the nearest ones are told), or a setting is out
            of its bounds.
    """
    entry = _entry(name)
    for setting in overrides:
        if setting not in entry.usual:
            raise OptimizerError(f"optimizer {name} has no setting {setting!r}{nearest(setting, entry.usual)}")
    trainable = [(label, p) for label, p in _named(name, parameters) if p.requires_grad]
    if not trainable:
        raise OptimizerError(f"no parameter requires a gradient; {name} has nothing to optimize")
    try:
        return entry.make(_groups(parameters, trainable) if entry.cuts else trainable, **overrides)
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"optimizer {name}: {error}") from error
    except (IndexError, KeyError, RuntimeError) as error:
        raise OptimizerError(f"optimizer {name} does not accept its settings {overrides}: {error}") from error


def _named(name: str, parameters: Any) -> list[tuple[str, Tensor]]:
    """Pairs of a name and a parameter, or an error for anything else."""
    if isinstance(parameters, nn.Module):
        return list(parameters.named_parameters())
    found = list(parameters) if isinstance(parameters, Iterable) else [parameters]
    for pair in found:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            what = "bare parameters" if isinstance(pair, Tensor) else type(pair).__name__
            raise OptimizerError(f"create({name!r}, ...) takes a model or its named_parameters(), not {what}")
    return found


def _groups(parameters: Any, trainable: list[tuple[str, Tensor]]) -> Groups:
    """The parameters in one group, and weights of one-dimensional convolutions of a model in another."""
    routes = routing(parameters).routes if isinstance(parameters, nn.Module) else ()
    cut = {route.name for route in routes if route.convolution and route.parameter.ndim == 3}
    rest = {"params": [(label, p) for label, p in trainable if label not in cut]}
    convolutions = {"params": [(label, p) for label, p in trainable if label in cut], "convolution": True}
    return [group for group in (rest, convolutions) if group["params"]]


def _entry(name: str) -> Entry:
    if name not in ENTRIES:
        raise OptimizerError(f"there is no optimizer {name!r}{nearest(name, names())}")
    return ENTRIES[name]


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: those that it may have meant, or all there are."""
    close = get_close_matches(word, list(words), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(words)}"


_INJECTING: Final = ("k", "alpha", "shear")
_ADAPTIVE: Final = ("aga_beta", "aga_lambda", "aga_gamma", "trigger")
_ASCENDING: Final = ("rho", "perturbation", "seed")
# Settings that a mode reads: to accept others would be to ignore them without a word.
_OF_MODE: Final[dict[str, tuple[str, ...]]] = {
    "base": (),
    "sync": _ASCENDING,
    "lazy": (*_ASCENDING, *_INJECTING),
    "aga": (*_ASCENDING, *_INJECTING, *_ADAPTIVE),
    "timer": (*_ASCENDING, *_INJECTING, "aga_lambda"),
}
_OF_ARS2: Final = tuple(
    name for name in signature(ARS2Neo).parameters if name not in ("params", *_OF_MODE["aga"], "surrogate", "mode")
)

_BASES: Final[dict[str, Callable[..., Optimizer]]] = {}  # what an ascent goes with: makes it, (params, **settings)


def _ars2(
    name: str,
    words: str,
    mode: Any,
    source: str = "the public ARS2-Neo",
    changed: Mapping[str, Any] | None = None,
    **fixed: Any,
) -> None:
    """Register ARS2-Neo in one mode, with some usual values changed and some settings fixed."""
    read = [setting for setting in (*_OF_ARS2, *_OF_MODE[mode]) if setting not in fixed]
    own = changed or {}
    period = {"k": period_of(mode, None)} if "k" in _OF_MODE[mode] else {}
    usual = {**{setting: DEFAULTS[setting] for setting in read}, **period, **own}
    register(name, Entry(words, source, partial(ARS2Neo, mode=mode, **fixed, **own), usual, cuts=True))
    if mode == "base":
        _BASES[name] = partial(ARS2Neo, **fixed, **own)


def _rule(name: str, words: str) -> None:
    """Register a rule that never ascends."""
    rule = RULES[name]
    usual = {"lr": rule.lr, "weight_decay": rule.weight_decay, **rule.settings}
    usual |= {} if rule.vector_lr is None else {"vector_lr": rule.vector_lr}
    _BASES[name] = partial(_relative, rule=name)
    register(name, Entry(words, rule.source, _BASES[name], usual, cuts="newton_schulz" in rule.settings))


def _relative(trainable: Any, *, rule: str, **chosen: Any) -> RuleOptimizer:
    """A relative whose vectors have a group of their own where their learning rate is another."""
    vector_lr = chosen.pop("vector_lr", RULES[rule].vector_lr)
    if vector_lr is None:
        return RuleOptimizer(trainable, rule, **chosen)
    checked_number("vector_lr", vector_lr)  # a group calls it lr

    def of(group: dict[str, Any], track: str) -> list[tuple[str, Tensor]]:
        return [(label, p) for label, p in group["params"] if track_of({"track": None}, p) == track]

    matrices = [{**group, "params": of(group, "matrix")} for group in trainable]
    vectors = {"params": [pair for group in trainable for pair in of(group, "vector")], "lr": vector_lr}
    return RuleOptimizer([group for group in (*matrices, vectors) if group["params"]], rule, **chosen)


def _ascent(name: str, words: str, source: str, **fixed: Any) -> None:
    """Register an ascent that goes with any optimizer of one pass; `base` names it."""
    free: dict[str, Any] = {key: fixed[key] for key in ("rho", "alpha", "k") if key in fixed}
    of_bases = [setting for base in _BASES for setting in ENTRIES[base].usual]
    usual: dict[str, Any] = {"base": "sgd", "lr": None, "weight_decay": None, **free, **dict.fromkeys(of_bases)}
    register(name, Entry(words, source, partial(_ascended, fixed=fixed, free=free), usual, cuts=True))


def _ascended(
    trainable: Groups, *, fixed: Mapping[str, Any], free: Mapping[str, Any], base: str = "sgd", **chosen: Any
) -> Optimizer:
    """The base with an ascent before its step."""
    if not isinstance(base, str) or base not in _BASES:
        raise OptimizerError(f"base={base!r} is no optimizer of one pass{nearest(str(base), _BASES)}")
    known = {*ENTRIES[base].usual, *free}
    for setting in chosen:
        if setting not in known:
            raise OptimizerError(f"base {base} has no setting {setting!r}{nearest(setting, sorted(known))}")
    return _BASES[base](trainable, **{**fixed, **chosen})


_rule("adamw", "AdamW: decoupled decay, bias-corrected moments")
_rule("sgd", "SGD, with momentum where it is set")
_rule("muon", "Muon: the orthogonal factor of the momentum; AdamW for vectors")
_rule("rmsuon", "RMSuon: the orthogonal factor of Adam's mean, with the norm of Adam's step")
_ars2("adarmsuon", "AdaRMSuon: ARS2-Neo's kernel without any ascent", "base", "the ARS repository")
_rule("adamuon", "AdaMuon: the orthogonal factor of the momentum's signs, over the root of its running square")
_rule("normuon", "NorMuon: Muon with rows brought to one size by their running mean square")
_rule("muoneq", "MuonEq: Muon of a momentum whose rows (R), columns (C) or both (RC) have length one")
_ars2("ars2-base", "ARS2-Neo, one pass a step", "base")
_ars2("ars2-sync", "ARS2-Neo, two passes every step", "sync")
_ars2("ars2-lazy", "ARS2-Neo, two passes every k steps, shear injected between", "lazy")
_ars2("ars2-aga", "ARS2-Neo, two passes when the gradient turns against the shear", "aga")
_ars2("ars", "ARS: AdaRMSuon with an ascent at every step, the forerunner", "sync", "the ARS repository", {"rho": 0.05})
_ascent("sam", "SAM with any base", "Foret et al. (2021)", mode="sync", perturbation="sam", rho=0.05)
_ascent("asam", "ASAM with any base", "Kwon et al. (2021)", mode="sync", perturbation="asam", rho=0.5)
_ascent(
    "gsam",
    "GSAM with any base",
    "Zhuang et al. (2022)",
    mode="sync",
    perturbation="sam",
    rho=0.05,
    surrogate="gsam",
    alpha=0.4,
)
_ascent(
    "looksam", "LookSAM with any base", "Liu et al. (2022)", mode="lazy", perturbation="sam", rho=0.1, alpha=0.7, k=5
)
_ars2(
    "adamw@rms",
    "AdamW's direction with the step size of ARS2-Neo base, exactly: lr |O|_F A for a matrix",
    "base",
    "a control of ours",
    orthogonalize=False,
)
_rule("muon@rms", "Muon's direction, lr E NS(m_hat): as long as ARS2-Neo's where |NS(m_hat)| is |NS(A)|")
_ars2(
    "ars2-timer",
    "ARS2-Neo, two passes at random, as often as aga's trigger fires on noise",
    "timer",
    "a control of ours. To match a measured aga run, set aga_lambda so that Phi(-aga_lambda) is what "
    "`lossscope report dynamics` tells as fires before the cap, and alpha to the mean of its steps.alpha",
)
_ars2(
    "ars2-random",
    "ARS2-Neo, two passes every step, each tensor moved by rho in a random direction",
    "sync",
    "a control of ours",
    perturbation="random",
)
