"""Steps that cannot be taken, each in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor

from lossscope.optimizer.errors import OptimizerError

__all__ = ["refuse_a_missing_pass", "refuse_mixed_units", "refuse_no_gradient", "refuse_sparse_gradients"]


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
