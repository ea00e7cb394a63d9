"""The Hessian of an objective, by its products with vectors."""

from __future__ import annotations

from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.cached_products import HeldProducts
from lossscope.probes.operators.product_methods import HESSIAN_METHODS

__all__ = ["hessian"]


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

            `auto` takes `reverse` by rule; where `held` expects 30 products or more (50 with a single batch) it may
            compare the methods first, for a tenth of the job at the most, and use the best one until the end of `held`.
            Where `reverse` raises it goes on to `forward` and `differences`.
        memory: Bytes that the kept graphs of `held` may hold together.

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
    products = HeldProducts("hessian", objective, offered, method=method, memory=memory)
    return products.operator(
        lambda names: hessian(objective.restricted(names), method=method, memory=memory), hessian_of=objective
    )
