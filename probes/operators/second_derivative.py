"""The derivative of a gradient with its graph, and whether it is the right one."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation, BatchGradient
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.finite_differences import Differences, apart

__all__ = ["SecondDerivativeError", "require_second_derivative", "second_derivative"]

_WRONG: Final = 0.01  # of a product, by which it may differ from settled differences


class SecondDerivativeError(ProbeError):
    """A second derivative that autograd gets wrong without a word."""


def second_derivative(batch: BatchGradient, direction: Tensor, last: bool) -> Tensor:
    """The derivative of the batch's slope along a direction: a product with the Hessian of the batch's loss.

    Args:
        batch: The gradient with its graph.
        direction: `(n,)`, in the dtype and on the device of the gradient.
        last: Whether the graph is used for the last time, and is freed.

    Returns:
        The derivative `(n,)`, zero where the gradient is constant.
    """
    if not batch.gradient.requires_grad:
        return torch.zeros_like(batch.theta)
    # the derivative of a number needs no grad_outputs, for which torch loads its symbolic shapes: half a second, once
    along = torch.dot(batch.gradient, direction)
    return torch.autograd.grad(along, batch.theta, retain_graph=not last, materialize_grads=True)[0]


def require_second_derivative(objective: Objective) -> None:
    """Refuse an objective whose second derivative autograd gets wrong without a word.

    A `torch.autograd.Function` whose backward pass reads what it needs from the forward pass (a fused loss, say), or
    is marked as differentiable once, has no derivative there: torch tells where the incoming slope has one, and else
    takes it for zero; and torch's own weight norm has a wrong one. Where such functions are in the graph, one
    product of the first batch is compared with differences of gradients, once for an objective.

    Args:
        objective: The loss.

    Raises:
        SecondDerivativeError: the product is another.
    """
    if objective.twice:
        return
    with objective.evaluating():
        if objective.custom is None:
            next(objective.gradients())
        if objective.custom:
            still = copy.copy(objective)  # the first batch finds the same buffers in both modes; here they stand still
            still.mode = "frozen" if objective.mode == "train" else objective.mode
            at = replace(next(still.passes()), before=None)
            _compare(Differences(still, at), at, objective)
    objective.twice = True


def _compare(differences: Differences, at: BatchEvaluation, whole: Objective) -> None:
    """Compare a product with differences that kinks leave alone."""
    if (expected := differences.settled()) is None:
        return
    batch = differences.objective.slope(differences.objective.leaf(), at, graph=True)
    if (error := apart(expected, second_derivative(batch, differences.probe, last=True))) > _WRONG:
        frozen = "mode='frozen' and " if whole.mode == "train" else ""
        raise SecondDerivativeError(
            f"a product with the Hessian differs from differences of gradients by {error:.0%}: what the backward pass "
            f"of {' or '.join(whole.custom or ())} computes has no derivative of its own, or a wrong one; use {frozen}"
            "hessian(objective), which takes differences there"
        )
