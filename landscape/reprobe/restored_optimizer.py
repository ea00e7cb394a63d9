"""The optimizer of a recorded loop of the user's own, made anew around the state that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.optimizer import ARS2Neo, OptimizerError, RuleOptimizer, create, names
from lossscope.optimizer.update.rules import RULES

__all__ = ["OwnOptimizerError", "own_optimizer"]


@dataclass(frozen=True)
class _Kind:
    """How an optimizer is made, and how the settings in its state are told from those of others."""

    make: Callable[[list[dict[str, Any]]], Optimizer]
    marks: tuple[str, ...]  # it saves these, and loading a state checks no name
    foreign: tuple[str, ...] = ()  # and never these


_CLASSES: Final[dict[str, _Kind]] = {
    "sgd": _Kind(torch.optim.SGD, ("momentum", "dampening")),
    "adam": _Kind(torch.optim.Adam, ("betas", "amsgrad")),
    "adamw": _Kind(torch.optim.AdamW, ("betas", "amsgrad")),
    "ars2neo": _Kind(ARS2Neo, ("betas", "energy")),
}
_OF_RULES: Final = {setting for rule in RULES.values() for setting in rule.settings} - {"betas", "eps"}
_OF_SHAPE: Final = (  # tensors as large as their parameter
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
)


class OwnOptimizerError(ValueError):
    """There is no optimizer that is known to be the run's; the message says why, and completes a sentence."""


def own_optimizer(manifest: Mapping[str, Any], state: Mapping[str, Any], model: nn.Module) -> Optimizer:
    """The run's optimizer for a model that stands in for the run's own, with the state loaded.

    What it is comes from the manifest: from the config's `optimizer`, the name that the recorder gave it, or the arm,
    in this order, in upper or lower case. Settings and moments come from the state. Names in a manifest are free, so
    one counts only where the state is one that this optimizer would have saved for these parameters.

    Args:
        manifest: Of the run.
        state: `optimizer.state_dict()` of a checkpoint.
        model: Its parameters are those that the state is about, in their order.

    Raises:
        OwnOptimizerError: The class is not known, or the state does not fit it or the model.
    """
    groups = state["param_groups"]
    kind, name = _kind(manifest, model, groups)
    for group in groups:
        for mark in kind.marks:
            if mark not in group:
                raise OwnOptimizerError(f"the run calls it {name}, but its state has no {mark}")
        for mark in kind.foreign:
            if mark in group:
                raise OwnOptimizerError(f"the run calls it {name}, but its state has {mark}, which is another's")
    try:
        optimizer = kind.make(_groups(groups, model))
        optimizer.load_state_dict(dict(state))
    except (OptimizerError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise OwnOptimizerError(
            f"its state does not fit a new {name}: {(str(error).splitlines() or [''])[0]}"
        ) from error
    _check_shapes(optimizer)
    return optimizer


def _check_shapes(optimizer: Optimizer) -> None:
    """Refuse moments of other parameters."""
    for p, moments in optimizer.state.items():
        for moment in _OF_SHAPE:
            if isinstance(moments.get(moment), Tensor) and moments[moment].shape != p.shape:
                raise OwnOptimizerError(
                    f"its {moment} of shape {tuple(moments[moment].shape)} belongs to another parameter than the one "
                    f"of shape {tuple(p.shape)} in its place"
                )


def _kind(manifest: Mapping[str, Any], model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> tuple[_Kind, str]:
    """The optimizer by the first of its names that is known, and what it is called."""
    config = manifest.get("config")
    config = config if isinstance(config, Mapping) else {}
    said = (config.get("optimizer"), manifest.get("optimizer"), manifest.get("arm"))
    called = [one for one in said if isinstance(one, str) and one]
    for name in called:
        kind = _of_class(name.lower(), groups) or _registered(name.lower(), config.get("options"), model)
        if kind is not None:
            return kind, name
    known = "known are torch's SGD, Adam and AdamW, ARS2Neo, and those of `lossscope list optimizers`"
    raise OwnOptimizerError(f"the run calls it {called[0]!r}; {known}" if called else f"the run names none; {known}")


def _of_class(name: str, groups: Sequence[Mapping[str, Any]]) -> _Kind | None:
    """By the name of a class or a rule; some rules share theirs with a class of torch's, whose groups have no mode."""
    rule, _, _ = name.partition("+")
    if rule in RULES and all("mode" in group for group in groups):
        return _relative(rule)
    return _CLASSES.get(name)


def _registered(name: str, options: object, model: nn.Module) -> _Kind | None:
    """By a name that `create` knows."""
    if name not in names():
        return None
    base = options.get("base") if isinstance(options, Mapping) else None
    try:
        made = create(name, model, **({} if base is None else {"base": base}))
    except OptimizerError as error:
        raise OwnOptimizerError(f"{name} cannot be made for this model: {error}") from error
    if isinstance(made, RuleOptimizer):
        return _relative(made.rule)
    return _CLASSES.get(type(made).__name__.lower())


def _relative(rule: str) -> _Kind:
    """The optimizer of a rule."""
    own = RULES[rule].settings
    return _Kind(partial(RuleOptimizer, rule=rule), ("mode", *own), tuple(sorted(_OF_RULES - own.keys())))


def _groups(saved: Sequence[Mapping[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The model's parameters in the groups of the state."""
    if all("param_names" in group for group in saved):
        known = dict(model.named_parameters())
        return [{"params": [(name, known[name]) for name in group["param_names"]]} for group in saved]
    if len(saved) > 1:
        raise OwnOptimizerError(
            f"it has {len(saved)} groups, and the checkpoint does not say which parameters are in which: pass named "
            "parameters to the optimizer"
        )
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [{"params": _as_many(len(saved[0]["params"]), (trainable, list(model.parameters())))}]


def _as_many(count: int, offered: Iterable[list[nn.Parameter]]) -> list[nn.Parameter]:
    """The first list of that length."""
    lengths = []
    for parameters in offered:
        if len(parameters) == count:
            return parameters
        lengths.append(len(parameters))
    raise OwnOptimizerError(f"it steps {count} parameters, and the model has {lengths[0]}")
