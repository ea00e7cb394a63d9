"""The derivative of a gradient with its graph, and whether it is the right one."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.difference import Differences, apart
from lossscope.probes.errors import ProbeError
from lossscope.probes.evaluation import BatchGradient, Pass
from lossscope.probes.objective import Objective

__all__ = ["SecondDerivativeError", "require_second_derivative", "second_derivative"]

_WRONG: Final = 0.01  # of a product, by which it may differ from settled differences


class SecondDerivativeError(ProbeError):
    """A second derivative that autograd gets wrong without a word."""


def second_derivative(batch: BatchGradient, direction: Tensor, last: bool) -> Tensor:
    """The derivative of the batch's slope along a direction `(n,)`; the graph is freed if this is its `last` use."""
    if not batch.gradient.requires_grad:
        return torch.zeros_like(batch.theta)
    # the derivative of a number needs no grad_outputs, for which torch loads its symbolic shapes: half a second, once
    along = torch.dot(batch.gradient, direction)
    return torch.autograd.grad(along, batch.theta, retain_graph=not last, materialize_grads=True)[0]


def require_second_derivative(objective: Objective) -> None:
    """Refuse an objective whose second derivative autograd gets wrong without a word.

    A `torch.autograd.Function` whose backward pass reads what it needs from the forward pass (a fused loss, say), or
    is marked as differentiable once, has no derivative there: torch tells where the incoming slope has one, and else
    takes it for zero. Where such functions are in the graph, one product is compared with differences of
    gradients, once for an objective. (In train mode, where each evaluation moves the buffers, it is not.)

    Args:
        objective: The loss.

    Raises:
        SecondDerivativeError: the product is another.
    """
    if objective.twice or objective.mode == "train":
        return
    with objective.evaluating():
        if objective.custom is None:
            next(objective.gradients())
        if objective.custom:
            at = replace(next(objective.passes()), before=None)
            _compare(Differences(objective, at), at, objective.custom)
    objective.twice = True


def _compare(differences: Differences, at: Pass, functions: list[str]) -> None:
    """Compare a product with differences that kinks leave alone."""
    if (expected := differences.settled()) is None:
        return
    batch = differences.objective.slope(differences.objective.leaf(), at, graph=True)
    if (error := apart(expected, second_derivative(batch, differences.probe, last=True))) > _WRONG:
        raise SecondDerivativeError(
            f"a product with the Hessian differs from differences of gradients by {error:.0%}: what the backward pass "
            f"of {' or '.join(functions)} computes has no derivative of its own; use hessian(objective), which takes "
            "differences there"
        )
