"""The diagonal of the Hessian, estimated from the graph of a gradient."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lossscope.optimizer.ascent.two_pass import Pass, refuse_sparse
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.estimates.estimated_step import EstimatedStep

__all__ = ["hessian_product"]


@dataclass
class _GraphPass(Pass):
    """A pass whose gradients keep their graph."""

    kept_graph: bool = False

    def backward(self, loss: Tensor) -> None:
        """Call `loss.backward(create_graph=True)` and keep the loss."""
        self.keep(loss)
        with warnings.catch_warnings():  # gradients are detached after the pass, which breaks the cycle it warns of
            warnings.filterwarnings("ignore", "Using backward.. with create_graph=True", UserWarning)
            loss.backward(create_graph=True)  # type: ignore[no-untyped-call]
        self.kept_graph = True


def hessian_product(step: EstimatedStep) -> Iterator[Pass]:
    """Yield one pass, and estimate `z * Hz` with random signs z, whose mean is the diagonal of the Hessian.

    Attention runs in the kernel of plain operations, the only one that can be differentiated twice.
    """
    only = _GraphPass(0)
    with sdpa_kernel(SDPBackend.MATH):
        yield only
    refuse_sparse(step.parameters)
    step.loss = only.loss
    gradients = {p: p.grad for p in step.parameters if p.grad is not None}
    differentiable = {p: g for p, g in gradients.items() if g.requires_grad}
    if gradients and not differentiable and not only.kept_graph:
        raise OptimizerError(
            f"{step.rule} needs the graph of the gradient: call p.backward(loss) in the loop of passes, or "
            "loss.backward(create_graph=True)"
        )
    signs = {p: step.noise("signs", i).signs_like(p) for i, p in enumerate(step.parameters)}
    products = _products(step.rule, differentiable, signs)
    for p, gradient in gradients.items():
        found = products.get(p)
        step.estimates[p] = {"diagonal": torch.zeros_like(p) if found is None else found * signs[p]}
        p.grad = gradient.detach()


def _ends_early(gradients: Iterable[Tensor]) -> bool:
    """Return True if a derivative behind the gradients is missing, which torch leaves out without a word."""
    stack: list[Any] = [g.grad_fn for g in gradients]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name() == "torch::autograd::Error":
            return True
        after = [one for one, _ in node.next_functions if one is not None and one not in seen]
        seen.update(after)
        stack += after
    return False


def _products(rule: str, gradients: dict[Tensor, Tensor], signs: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Return the products of the Hessian with the signs."""
    if not gradients:
        return {}
    inputs = [p for p in signs if p.requires_grad]
    if _ends_early(gradients.values()):
        raise OptimizerError(
            f"{rule} needs a model that can be differentiated twice: part of it has a backward pass marked with "
            "@once_differentiable"
        )
    try:
        found = torch.autograd.grad(
            list(gradients.values()), inputs, [signs[p] for p in gradients], allow_unused=True, materialize_grads=False
        )
    except RuntimeError as error:
        raise OptimizerError(
            f"{rule} needs a model that can be differentiated twice: {str(error).splitlines()[0].rstrip('.')}"
        ) from error
    return {p: product for p, product in zip(inputs, found, strict=True) if product is not None}
