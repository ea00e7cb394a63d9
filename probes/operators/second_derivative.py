"""Derivative of a gradient by autograd: products with the Hessian of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation, BatchGradient
from lossscope.probes.objective.objective import Objective
from lossscope.probes.objective.parameters import joined, shaped

__all__ = [
    "HessianProduct",
    "Pairing",
    "SecondDerivativeError",
    "StoppedGradientError",
    "batched_derivative",
    "by_forward",
    "by_reverse",
    "gradient_function",
    "named",
    "second_derivative",
]

HessianProduct: TypeAlias = Callable[[Objective, BatchEvaluation, Tensor], Tensor]  # H v of one batch


class SecondDerivativeError(ProbeError):
    """A second derivative that automatic differentiation gets silently wrong."""


class StoppedGradientError(ProbeError):
    """A second derivative that cannot be checked, because the loss stops gradients; no other method has it either."""


class Pairing:
    r"""Inner product :math:`\langle g, v\rangle` of tensors that have a graph with a vector, for its derivative alone.

    The graph is kept, and not the values of g. Its derivative is that of g along v, for which nothing of the length of
    v is computed or copied. (`torch.autograd.grad` with `grad_outputs` would be the same, but the first use imports
    torch's symbolic shapes, half a second.)

    Args:
        parts: g, in one order and shape with the parts of v; those without a graph count as constants.

    Attributes:
        ends: The scalar at the end of the graph; empty if no part has one.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._places = [i for i, part in enumerate(parts) if part.requires_grad]
        self._along: list[Tensor] = []
        kept = [parts[i] for i in self._places]
        self.ends: list[Tensor] = [_Pair.apply(self._along, *kept)] if kept else []  # type: ignore[no-untyped-call]

    def derivative(self, along: Sequence[Tensor], by: Sequence[Tensor], *, last: bool) -> list[Tensor]:
        """Return the derivative by some tensors.

        Args:
            along: v.
            by: Tensors in the graph.
            last: True if the graph is not needed afterwards and can be freed.

        Returns:
            One tensor for each of `by`, zero where g does not depend on it.
        """
        if not self.ends:
            return [torch.zeros_like(one, requires_grad=False) for one in by]
        self._along[:] = [along[i] for i in self._places]
        try:
            return list(torch.autograd.grad(self.ends[0], by, retain_graph=not last, materialize_grads=True))
        finally:
            self._along.clear()


class _Pair(torch.autograd.Function):
    """Return a scalar whose derivative by each argument is the tensor that a list has in its place at that time."""

    @staticmethod
    def forward(ctx: Any, along: list[Tensor], *parts: Tensor) -> Tensor:
        ctx.along = along
        return parts[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:  # of the scalar itself, so that the incoming derivative is 1
        return None, *ctx.along


def batched_derivative(parts: Sequence[Tensor], along: Sequence[Tensor], by: Sequence[Tensor], *, last: bool) -> Tensor:
    """Return the derivatives of tensors that have a graph along several vectors, in one backward pass.

    Args:
        parts: The tensors; those without a graph count as constants.
        along: The parts of the vectors, `(k, *shape)` each.
        by: Tensors in the graph, of n entries together.
        last: True if the graph is not needed afterwards and can be freed.

    Returns:
        One row for each vector, `(k, n)`, zero where there is no dependence.
    """
    count, pairs = len(along[0]), [(part, v) for part, v in zip(parts, along, strict=True) if part.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(by)
    if pairs:
        ends, vectors = zip(*pairs, strict=True)
        found = torch.autograd.grad(ends, by, vectors, retain_graph=not last, allow_unused=True, is_grads_batched=True)
    blocks = zip(found, by, strict=True)
    return torch.cat([one.new_zeros(count, one.numel()) if d is None else d.flatten(1) for d, one in blocks], 1)


def second_derivative(batch: BatchGradient, direction: Tensor, last: bool) -> Tensor:
    """Return the derivative of the batch's gradient along a direction: a product with the Hessian of the batch's loss.

    Args:
        batch: The gradient with its graph.
        direction: `(n,)`, in the dtype and on the device of the gradient.
        last: True if the graph is not needed afterwards and can be freed.

    Returns:
        The derivative `(n,)`, zero where the gradient is constant.
    """
    along = shaped(direction, batch.leaves)
    return joined(Pairing(batch.parts).derivative(along, batch.leaves, last=last))


@contextmanager
def named() -> Iterator[None]:
    """Raise a known error where torch has no second derivative, for measures that take it themselves.

    Raises:
        SecondDerivativeError: a second backward pass raised, for another reason than memory.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise
        line = " ".join(str(error).split())[:160]
        raise SecondDerivativeError(
            f"torch has no second derivative of the loss by two backward passes ({line}): use hessian(objective), "
            "which falls back to other methods"
        ) from error


def by_reverse(objective: Objective, at: BatchEvaluation, direction: Tensor) -> Tensor:
    """Return the product of a vector with the Hessian of one batch, by two backward passes.

    Args:
        objective: The loss; inside its `evaluating`.
        at: The batch.
        direction: `(n,)`.
    """
    leaves = objective.leaves()

    def product(loss: Tensor) -> Tensor:
        batch = BatchGradient(1.0, leaves, objective.derivative(loss.reshape(()), leaves, graph=True))
        return second_derivative(batch, direction, last=True)

    return objective.within(product, leaves, at)


def gradient_function(objective: Objective, at: BatchEvaluation) -> Callable[[Tensor], Tensor]:
    """Return the gradient of one batch as a pure function of the parameters, for torch's transforms.

    Args:
        objective: The loss; inside its `evaluating`.
        at: The batch.

    Returns:
        A function of the parameters `(n,)`.
    """

    def loss(theta: Tensor) -> Tensor:
        found: Tensor = objective.evaluated(objective.call, objective.vector.views(theta), at)
        return found.reshape(())

    gradient: Callable[[Tensor], Tensor] = torch.func.grad(loss)
    return gradient


def by_forward(objective: Objective, at: BatchEvaluation, direction: Tensor) -> Tensor:
    """Return the product of a vector with the Hessian of one batch, in forward mode over the backward pass.

    Args:
        objective: The loss; inside its `evaluating`.
        at: The batch.
        direction: `(n,)`.
    """
    found: Tensor = torch.func.jvp(gradient_function(objective, at), (objective.parameters(),), (direction,))[1]
    return found
