"""Hessian of an objective, by its products with vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.objective.parameters import joined, shaped
from lossscope.probes.operators.cached_products import CachedProducts
from lossscope.probes.operators.derivative_checks import require_agreement, require_second_derivative
from lossscope.probes.operators.finite_differences import DIFFERENCES
from lossscope.probes.operators.method import BatchProduct, Method, graph_bytes, stacked
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.operators.second_derivative import Pairing, batched_derivative, gradient_function

__all__ = ["HESSIAN_METHODS", "hessian"]


def _reverse(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Reverse over reverse: differentiate <gradient, v> by a second backward pass, column by column."""
    leaves = objective.leaves()
    pairing = Pairing(objective.slope(leaves, at, graph=True).parts)

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        last = len(rows) - 1
        return stacked(
            joined(pairing.derivative(shaped(row, leaves), leaves, last=not keep and i == last))
            for i, row in enumerate(rows)
        )

    return BatchProduct(multiply, pairing.ends, leaves)


def _batched(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Reverse over reverse, with all columns in one backward pass (`is_grads_batched`)."""
    leaves = objective.leaves()
    parts = objective.slope(leaves, at, graph=True).parts

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        return batched_derivative(parts, shaped(rows, leaves), leaves, last=not keep)

    return BatchProduct(multiply, parts, leaves)


def _forward(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Forward over reverse: differentiate the gradient in forward mode; no graph is kept."""
    return BatchProduct(_mapped(_derivative(objective, at, "forward")))


def _linearize(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Linearize the gradient once; setting this up is expensive, running it is cheap."""
    gradient = _gradient(objective, at, "linearize")
    size = graph_bytes(_reverse(objective, at))  # the linearized program keeps about what the graph would
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's tracer warns about its own constants
        _, derivative = torch.func.linearize(gradient, objective.parameters())
    return BatchProduct(_mapped(derivative), bytes=size)


def _compile(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Forward over reverse, compiled."""
    multiply = _mapped(torch.compile(_derivative(objective, at, "compile"), dynamic=False))
    multiply(torch.zeros(1, objective.size, dtype=objective.dtype, device=objective.device), True)  # compiles
    return BatchProduct(multiply)


def _derivative(objective: Objective, at: BatchEvaluation, name: str) -> Callable[[Tensor], Tensor]:
    """Return the derivative of the gradient of one batch along a direction."""
    gradient, theta = _gradient(objective, at, name), objective.parameters()
    if at.before is not None:  # the first two evaluations are compared, which cannot be done inside a transform
        objective.loss(objective.copies(), at)

    def derivative(direction: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(gradient, (theta,), (direction,))[1]
        return found

    return derivative


def _gradient(objective: Objective, at: BatchEvaluation, name: str) -> Callable[[Tensor], Tensor]:
    """Return the gradient of one batch as a pure function of the parameters."""
    _require_fixed_buffers(objective, name)
    return gradient_function(objective, at)


def _require_fixed_buffers(objective: Objective, name: str) -> None:
    """Raise in train mode: each evaluation updates the buffers, and these methods evaluate more than once."""
    if objective.mode == "train":
        raise ProbeError(f"method={name!r} does not support mode='train', which updates buffers: use mode='frozen'")


def _mapped(derivative: Callable[[Tensor], Tensor]) -> Callable[[Tensor, bool], Tensor]:
    """Return products by a derivative along one direction, vectorized with `vmap` over several rows."""

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        if len(rows) == 1:
            return derivative(rows[0]).clone()[None]  # a linearized program may return a tensor that it keeps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about slow batching rules
            found: Tensor = torch.func.vmap(derivative)(rows)
        return found.contiguous()  # a constant one is expanded

    return multiply


def _agreement(name: str, prepare: Callable[[Objective, BatchEvaluation], BatchProduct]) -> Callable[[Objective], None]:
    """Return the check that a method gets the second derivative right, which torch's transforms may get wrong."""

    def product(objective: Objective, at: BatchEvaluation, direction: Tensor) -> Tensor:
        prepared = prepare(objective, at)
        prepared.multiply(direction[None], True)  # a linearized program may write into its own constants
        return prepared.multiply(direction[None], False)[0]

    return lambda objective: require_agreement(objective, product, name)


HESSIAN_METHODS: Final = (
    Method("reverse", _reverse, is_gradient=True, check=require_second_derivative),
    Method("batched", _batched, width=8, is_gradient=True, check=require_second_derivative),
    Method("forward", _forward, width=8, fallback=True, check=_agreement("forward", _forward)),
    Method("linearize", _linearize, width=8, check=_agreement("linearize", _linearize)),
    Method("compile", _compile, check=_agreement("compile", _compile)),
    DIFFERENCES,
)


def hessian(objective: Objective, *, method: str = "reverse", memory: float = 2**30) -> ObjectiveOperator:
    r"""Return the Hessian of an objective at the parameters the model has when a product is taken.

    A product is the derivative of :math:`\langle \nabla L, v\rangle` (Pearlmutter's identity), exact up to rounding
    for every method but `differences`. The columns of a block share one forward and one first backward pass; inside
    `cached()` products share them too, batch by batch as far as `memory` allows. Cached graphs belong to the
    parameters at its start: move the parameters only outside.

    Args:
        objective: The loss; its trainable parameters are the `n` coordinates.
        method: One of

            * `reverse` (default): a second backward pass for each column; where it raises, `forward` and then
              `differences` replace it, and the operator's `method` and `fallback_reason` say so,
            * `batched`: one second backward pass for 8 columns (`is_grads_batched`),
            * `forward`: one pass in forward mode (`torch.func.jvp` of the gradient), which keeps no graph,
            * `linearize`: `torch.func.linearize` of the gradient, with an expensive set-up and cheap products,
            * `compile`: `forward`, compiled (on CUDA only),
            * `differences`: central differences of gradients, for models without a second derivative.

            Every method but the default raises where it cannot take a product.
        memory: Upper bound in bytes for the cached graphs. Default: 1 GiB.

    Returns:
        The operator. A parameter that the loss does not contain has a zero row.

    Raises:
        ProbeError: the method is unknown, or the memory is negative. A product raises it where the method cannot take
            it, or memory runs out.

    Source:
        B. Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6(1), 147-160.
    """
    found: ObjectiveOperator = objective.operator(lambda own: _hessian(own, method, memory))
    return found


def _hessian(objective: Objective, method: str, memory: float) -> ObjectiveOperator:
    """Return the Hessian of an objective whose batches are all in this process."""
    available = [known for known in HESSIAN_METHODS if known.name != "compile" or objective.device.type == "cuda"]
    products = CachedProducts(objective, available, method=method, memory=memory)
    return products.operator(
        lambda names: hessian(objective.restricted(names), method=method, memory=memory),
        lambda other: hessian(other, memory=0),
        is_hessian=True,
    )
