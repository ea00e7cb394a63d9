"""The Hessian of an objective, by its products with vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.cached_products import CachedProducts
from lossscope.probes.operators.finite_differences import DIFFERENCES
from lossscope.probes.operators.method import BatchProduct, Method, held_bytes
from lossscope.probes.operators.second_derivative import require_second_derivative, second_derivative

__all__ = ["HESSIAN_METHODS", "hessian"]


def _reverse(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Reverse over reverse: the derivative of <gradient, v> by a second backward pass, column by column."""
    batch = objective.slope(objective.leaf(), at, graph=True)

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        count = len(rows)
        found = [second_derivative(batch, row, not keep and i == count) for i, row in enumerate(rows, 1)]
        return found[0][None] if count == 1 else torch.stack(found)

    return BatchProduct(multiply, [batch.gradient], [batch.theta])


def _batched(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """The same with all columns in one backward pass (`is_grads_batched`)."""
    batch = objective.slope(objective.leaf(), at, graph=True)

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        if not batch.gradient.requires_grad:
            return torch.zeros_like(rows)
        found = torch.autograd.grad(
            batch.gradient, batch.theta, rows, retain_graph=keep, allow_unused=True, is_grads_batched=True
        )[0]
        return torch.zeros_like(rows) if found is None else found

    return BatchProduct(multiply, [batch.gradient], [batch.theta])


def _forward(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Forward over reverse: the derivative of the gradient by one pass with tangents, nothing kept."""
    return BatchProduct(_mapped(_derivative(objective, at, "forward")))


def _linearize(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """The gradient linearised once into a program of its own: dear to set up, cheap to run."""
    gradient = _gradient(objective, at, "linearize")
    size = held_bytes(_reverse(objective, at))  # what the program keeps is about what the graph would
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's tracer about its own constants
        _, derivative = torch.func.linearize(gradient, objective.parameters())
    return BatchProduct(_mapped(derivative), bytes=size)


def _compile(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Forward over reverse as one compiled program."""
    multiply = _mapped(torch.compile(_derivative(objective, at, "compile"), dynamic=False))
    multiply(torch.zeros(1, objective.size, dtype=objective.dtype, device=objective.device), True)  # compiles
    return BatchProduct(multiply)


def _derivative(objective: Objective, at: BatchEvaluation, name: str) -> Callable[[Tensor], Tensor]:
    """The derivative of the gradient of one batch along a direction."""
    gradient, theta = _gradient(objective, at, name), objective.parameters()
    if at.before is not None:  # the first evaluations are compared, and a transform cannot
        with torch.no_grad():
            objective.loss(objective.copies(), at)

    def derivative(direction: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(gradient, (theta,), (direction,))[1]
        return found

    return derivative


def _gradient(objective: Objective, at: BatchEvaluation, name: str) -> Callable[[Tensor], Tensor]:
    """The gradient of one batch as a pure function of the parameters."""
    _still(objective, name)

    def loss(theta: Tensor) -> Any:
        return objective.evaluated(objective.call, objective.vector.views(theta), at).reshape(())

    gradient: Callable[[Tensor], Tensor] = torch.func.grad(loss)
    return gradient


def _still(objective: Objective, name: str) -> None:
    """Refuse train mode, where each evaluation moves the buffers, to a method that evaluates often."""
    if objective.mode == "train":
        raise ProbeError(f"method={name!r} cannot follow buffers that move in train mode: use mode='frozen'")


def _mapped(derivative: Callable[[Tensor], Tensor]) -> Callable[[Tensor, bool], Tensor]:
    """Products by a derivative along one direction, mapped over the rows where there are several."""

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        if len(rows) == 1:
            return derivative(rows[0]).clone()[None]  # a program may hand out what it keeps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about rules that are slow
            found: Tensor = torch.func.vmap(derivative)(rows)
        return found

    return multiply


HESSIAN_METHODS: Final = (
    Method("reverse", _reverse, is_gradient=True, check=require_second_derivative),
    Method("batched", _batched, widths=(2, 8), is_gradient=True, check=require_second_derivative, first_seconds=0.6),
    Method("forward", _forward, widths=(1, 8), first_seconds=2.0),
    Method("linearize", _linearize, widths=(1, 8), first_seconds=2.0, node_seconds=0.03),
    Method("compile", _compile, first_seconds=30.0, node_seconds=0.1),
    DIFFERENCES,
)


def hessian(objective: Objective, *, method: str = "auto", memory: float = 2**30) -> SymmetricOperator:
    r"""The Hessian of an objective at the parameters the model has when a product is taken.

    A product is the derivative of :math:`\langle \nabla L, v\rangle` (Pearlmutter's identity), exact up to rounding
    for every method but `differences`. The columns of a block share one forward and one first backward pass; `held()`
    shares them between products too, batch by batch as far as `memory` allows. What it keeps belongs to the parameters
    at its start: move them only outside.

    Args:
        objective: The loss; its trainable parameters are the `n` coordinates.
        method: `auto`, or one of

            * `reverse`: a second backward pass for each column,
            * `batched`: one second backward pass for a block of columns (`is_grads_batched`),
            * `forward`: one pass with tangents (`torch.func.jvp` of the gradient), which keeps no graph,
            * `linearize`: `torch.func.linearize` of the gradient, dear to set up and cheap to run,
            * `compile`: `forward`, compiled (on CUDA only),
            * `differences`: central differences of gradients, where the model has no second derivative.

            `auto` takes `reverse` by rule; where `cached` expects 30 products or more (50 with a single batch) it may
            compare the methods first, for a tenth of the job at the most, and use the best one until the end of
            `cached`. Where `reverse` raises it goes on to `forward` and `differences`.
        memory: Bytes that the kept graphs of `cached` may hold together.

    Returns:
        The operator. A parameter that the loss does not contain has a zero row. Its `method` is what takes the
        products, its `choice` says why.

    Raises:
        ProbeError: the method is unknown, or the memory is negative. A product raises one where a method that was named
            cannot take it, or memory runs out.

    Source:
        B. Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6(1), 147-160.
    """
    offered = [known for known in HESSIAN_METHODS if known.name != "compile" or objective.device.type == "cuda"]
    products = CachedProducts("hessian", objective, offered, method=method, memory=memory)
    return products.operator(
        lambda names: hessian(objective.restricted(names), method=method, memory=memory), hessian_of=objective
    )
