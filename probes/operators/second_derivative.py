"""Derivative of a gradient by autograd, and a check that it is right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation, BatchGradient
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.finite_differences import Differences, relative_distance

__all__ = ["SecondDerivativeError", "check_product", "require_second_derivative", "second_derivative"]

_WRONG: Final = 0.01  # relative error above which a product contradicts converged finite differences


class SecondDerivativeError(ProbeError):
    """A second derivative that automatic differentiation gets silently wrong."""


def second_derivative(batch: BatchGradient, direction: Tensor, last: bool) -> Tensor:
    """Return the derivative of the batch's gradient along a direction: a product with the Hessian of the batch's loss.

    Args:
        batch: The gradient with its graph.
        direction: `(n,)`, in the dtype and on the device of the gradient.
        last: True if the graph is not needed afterwards and can be freed.

    Returns:
        The derivative `(n,)`, zero where the gradient is constant.
    """
    if not batch.gradient.requires_grad:
        return torch.zeros_like(batch.theta)
    # a scalar needs no grad_outputs, for which torch would import its symbolic shapes: half a second, once
    along = torch.dot(batch.gradient, direction)
    return torch.autograd.grad(along, batch.theta, retain_graph=not last, materialize_grads=True)[0]


def require_second_derivative(objective: Objective) -> None:
    """Raise if autograd gets the second derivative of an objective silently wrong.

    The backward pass of a `torch.autograd.Function` that reads precomputed values from the forward pass (a fused loss,
    say), or that is marked `once_differentiable`, has no derivative: torch raises only where the incoming gradient has
    one, and treats it as zero otherwise. The second derivative of torch's own weight norm is wrong. Where the graph
    contains such functions, one product of the first batch is compared with finite differences, once per objective.

    Args:
        objective: The loss.

    Raises:
        SecondDerivativeError: the two differ.
    """
    if objective.second_derivative_checked:
        return
    check_product(objective, _by_reverse, "reverse")
    objective.second_derivative_checked = True


def check_product(
    objective: Objective, product: Callable[[Objective, BatchEvaluation, Tensor], Tensor], method: str
) -> None:
    """Raise if a Hessian product of an objective with custom functions differs from finite differences.

    Without custom autograd functions in the graph nothing is compared; neither where kinks keep the differences from
    converging.

    Args:
        objective: The loss.
        product: Multiplies a vector `(n,)` by the Hessian of one batch of the given objective.
        method: The name of the method, for the message.

    Raises:
        SecondDerivativeError: the two differ by more than 1 %.
    """
    with objective.evaluating():
        if objective.custom is None:
            next(objective.gradients())
        if not objective.custom:
            return
        # the first batch sees the same buffers in train and frozen mode, and frozen mode does not update them
        frozen = copy.copy(objective)
        frozen.mode = "frozen" if objective.mode == "train" else objective.mode
        at = replace(next(frozen.passes()), before=None)
        differences = Differences(frozen, at)
        if (expected := differences.converged()) is None:
            return
        wide = differences.objective
        if (error := relative_distance(expected, product(wide, at, differences.probe))) > _WRONG:
            setting = "mode='frozen' and " if objective.mode == "train" else ""
            raise SecondDerivativeError(
                f"a product with the Hessian by method={method!r} differs from finite differences by {error:.0%}: the "
                f"backward pass of {' or '.join(objective.custom)} has no derivative of its own, or a wrong one; use "
                f"{setting}hessian(objective), which falls back to finite differences"
            )


def _by_reverse(objective: Objective, at: BatchEvaluation, direction: Tensor) -> Tensor:
    """Return the product of a vector with the Hessian of one batch, by two backward passes."""
    batch = objective.slope(objective.leaf(), at, graph=True)
    return second_derivative(batch, direction, last=True)
