"""Optimizer of a recorded run, rebuilt from the facts in its manifest around the state of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.recording.checkpoints import name_prefixes
from lossscope.landscape.recording.run_metadata import class_name
from lossscope.optimizer import ARS2Neo, OptimizerError, RuleOptimizer

__all__ = ["OwnOptimizerError", "own_optimizer"]

# Only these are rebuilt: a manifest is data, and the name in it must not choose what is called.
_CLASSES: Final[dict[str, type[Optimizer]]] = {
    class_name(kind): kind for kind in (ARS2Neo, RuleOptimizer, torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
}


class OwnOptimizerError(LandscapeError):
    """The optimizer of a run cannot be rebuilt; the message completes a sentence with the reason."""


def own_optimizer(manifest: Mapping[str, Any], state: Mapping[str, Any], model: nn.Module) -> Optimizer:
    """Return the run's optimizer for a model with the same parameters, with the state loaded.

    Class, rule, groups and settings come from the manifest's `optimizer_facts`; the present settings and the moments
    come from the state.

    Args:
        manifest: Manifest of the run.
        state: `optimizer.state_dict()` of a checkpoint.
        model: A model whose parameters have the names of the recorded ones.

    Raises:
        OwnOptimizerError: The manifest has no such facts (runs before schema 4), the class is not one of those that are
            rebuilt, or the facts or the state do not fit the model.
    """
    facts = manifest.get("optimizer_facts")
    if not isinstance(facts, Mapping):
        raise OwnOptimizerError("the run was recorded before schema 4, whose manifest describes the optimizer")
    kind = _CLASSES.get(str(facts.get("class")))
    if kind is None:
        known = ", ".join(_CLASSES)
        raise OwnOptimizerError(f"its class must be one of {known} to be rebuilt, got {facts.get('class')!r}")
    rule: dict[str, Any] = {"rule": facts.get("rule")} if kind is RuleOptimizer else {}
    try:
        optimizer = kind(_groups(facts["groups"], model), **rule)
        optimizer.load_state_dict(dict(state))
    except OwnOptimizerError:
        raise
    except (OptimizerError, AttributeError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise OwnOptimizerError(f"its facts or its state do not fit the model: {reason}") from error
    _check_shapes(optimizer)
    return optimizer


def _groups(recorded: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Return the recorded parameter groups with the parameters of the model."""
    named = dict(model.named_parameters())
    ours, theirs = name_prefixes([name for group in recorded for name in group["parameters"] if name], named)
    known = {ours + name.removeprefix(theirs): p for name, p in named.items()}
    groups = []
    for group in recorded:
        missing = [name for name in group["parameters"] if name not in known]
        if missing:
            raise OwnOptimizerError(f"its parameter {missing[0]!r} is not one of the model's")
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in group["settings"].items()}
        groups.append({**settings, "params": [(name, known[name]) for name in group["parameters"]]})
    return groups


def _check_shapes(optimizer: Optimizer) -> None:
    """Reject moments of other parameters, which torch's own classes load without a check."""
    if not type(optimizer).__module__.startswith("torch."):
        return
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != p.shape:
                raise OwnOptimizerError(
                    f"its {key} of shape {tuple(value.shape)} belongs to another parameter than the one of shape "
                    f"{tuple(p.shape)} in its place"
                )
