"""Steps that cannot be taken, each in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from lossscope.optimizer.ascent.trigger import COUNTERS
from lossscope.optimizer.errors import OptimizerError

__all__ = [
    "refuse_a_missing_pass",
    "refuse_a_scaled_closure",
    "refuse_a_step_without_its_scaler",
    "refuse_counters",
    "refuse_mixed_units",
    "refuse_no_gradient",
    "refuse_one_name_for_two",
    "refuse_sparse_gradients",
]


def refuse_sparse_gradients(parameters: Iterable[Tensor]) -> None:
    """Raise an `OptimizerError` where one has a sparse gradient."""
    for p in parameters:
        if p.grad is not None and p.grad.layout != torch.strided:
            raise OptimizerError(
                f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which no optimizer here steps; "
                "build its module with sparse=False, or step it with torch.optim.SparseAdam"
            )


def refuse_no_gradient(parameters: Iterable[Tensor]) -> None:
    """Raise an `OptimizerError` where a closure has left none at all."""
    if all(p.grad is None for p in parameters):
        raise OptimizerError(
            "the closure left no gradient; it must zero, run forward, call backward and return the loss"
        )


def refuse_a_missing_pass(step: int, mode: str) -> NoReturn:
    """Raise an `OptimizerError`: the step needs a second gradient, and there was no way to take it."""
    raise OptimizerError(
        f"step {step} of mode={mode!r} needs a second gradient: run "
        "`for p in optimizer.passes(model): p.backward(loss)` before step(), or call step(closure)"
    )


def refuse_mixed_units() -> NoReturn:
    """Raise an `OptimizerError`: the first gradient is scaled and the second is not."""
    raise OptimizerError(
        "a GradScaler has unscaled the second gradient of this step and not the first, of which it was not told; "
        "pass it to both: optimizer.passes(model, scaler=scaler)"
    )


def refuse_a_scaled_closure() -> NoReturn:
    """Raise an `OptimizerError`: the gradients that the closure makes would be stepped by as they are, scaled."""
    raise OptimizerError(
        "a GradScaler took a step with a closure, whose gradients nothing would unscale: run "
        "`for p in optimizer.passes(model, scaler=scaler): scaler.scale(loss).backward()`, then scaler.step(optimizer)"
    )


def refuse_a_step_without_its_scaler() -> NoReturn:
    """Raise an `OptimizerError`: nothing has unscaled the gradients."""
    raise OptimizerError(
        "passes() was told of a GradScaler and step() was called without it, so that the gradients are still scaled: "
        "call scaler.step(optimizer) in place of optimizer.step()"
    )


def refuse_counters(settings: Mapping[str, Any]) -> None:
    """Raise an `OptimizerError` where one of the settings is a count that the optimizer keeps by itself."""
    if counted := sorted(COUNTERS.keys() & settings.keys()):
        raise OptimizerError(
            f"{counted[0]} is counted by the optimizer itself and no setting; load_state_dict brings it back"
        )


def refuse_one_name_for_two(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise an `OptimizerError` where two parameters have one name, by which records tell them apart."""
    seen: set[str] = set()
    for name in (name for group in groups for name in group.get("param_names", ())):
        if name in seen:
            raise OptimizerError(
                f"two parameters are called {name!r}; tell them apart, as by model.named_parameters('prefix')"
            )
        seen.add(name)
