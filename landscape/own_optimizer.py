"""The optimizer of a recorded loop of the user's own, made anew around the state that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.optimizer import ARS2Neo, OptimizerError, create, names

__all__ = ["OwnOptimizerError", "own_optimizer"]

_CLASSES: Final[dict[str, type[Optimizer]]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "ars2neo": ARS2Neo,
}
# Settings that one class saves and the others do not: loading a state checks no name.
_MARKS: Final[dict[type[Optimizer], tuple[str, ...]]] = {
    torch.optim.SGD: ("momentum", "dampening"),
    torch.optim.Adam: ("betas", "amsgrad"),
    torch.optim.AdamW: ("betas", "amsgrad"),
    ARS2Neo: ("betas", "energy"),
}
_OF_SHAPE: Final = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # tensors as large as their parameter


class OwnOptimizerError(ValueError):
    """There is no optimizer that is known to be the run's; the message says why, and completes a sentence."""


def own_optimizer(manifest: Mapping[str, Any], state: Mapping[str, Any], model: nn.Module) -> Optimizer:
    """The run's optimizer for a model that stands in for the run's own, with the state loaded.

    Its class comes from the manifest: from the config's `optimizer`, the class that the recorder saw, or the arm,
    in this order, in upper or lower case. Settings and moments come from the state. Names in a manifest are free, so it
    counts only where the state is one that this class would have saved for these parameters.

    Args:
        manifest: Of the run.
        state: `optimizer.state_dict()` of a checkpoint.
        model: Its parameters are those that the state is about, in their order.

    Raises:
        OwnOptimizerError: The class is not known, or the state does not fit it or the model.
    """
    kind, name = _kind(manifest, model)
    groups = state["param_groups"]
    for mark in _MARKS[kind]:
        if any(mark not in group for group in groups):
            raise OwnOptimizerError(f"the run calls it {name}, but its state has no {mark}")
    try:
        optimizer = kind(_groups(groups, model))  # type: ignore[call-arg]
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


def _kind(manifest: Mapping[str, Any], model: nn.Module) -> tuple[type[Optimizer], str]:
    """The class by the first of its names that is known, and what it is called."""
    config = manifest.get("config")
    said = [config.get("optimizer") if isinstance(config, Mapping) else None]
    said += [manifest.get("optimizer"), manifest.get("arm")]
    called = [one for one in said if isinstance(one, str) and one]
    for name in called:
        if name.lower() in _CLASSES:
            return _CLASSES[name.lower()], name
        if name.lower() in names():
            try:
                return type(create(name.lower(), model)), name
            except OptimizerError as error:
                raise OwnOptimizerError(f"{name} cannot be made for this model: {error}") from error
    known = "known are SGD, Adam, AdamW and ARS2Neo"
    raise OwnOptimizerError(f"the run calls it {called[0]!r}; {known}" if called else f"the run names none; {known}")


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
