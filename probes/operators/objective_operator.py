"""Operators of an objective's loss: error of their products where the model fits its data, and advice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import (
    MARGIN,
    ProductError,
    ProductFacts,
    Reference,
    SymmetricOperator,
    asymmetry,
)
from lossscope.probes.operators.stopped_gradient import stops_gradients
from lossscope.probes.sums import row_norms

__all__ = ["ObjectiveOperator"]

_LOST: Final = 1e-12  # loss of a classifier below which 1 - p keeps less than four digits in float64
_SATURATED: Final = 0.1  # relative difference of a narrower product above which its rounding cannot be scaled
_CANCELLED: Final = 100.0  # rounding units of float32 above which a product has lost digits where terms cancel
_CHANCE: Final = 1e3  # ratio of errors of two products with random vectors, at most
_ALL_LOST: Final = 1e6  # rounding units of asymmetry above which products at a loss of 0 have lost their digits


class ObjectiveOperator(SymmetricOperator):
    """A symmetric matrix whose coordinates are the trainable parameters of an objective.

    Args:
        objective: The objective; it gives size, dtype and device.
        product: `(n, k) -> (n, k)`; linear, symmetric and deterministic. It must not modify its argument.
        restrict: Makes the diagonal block of some of the parameters, given by name, see `restricted`.
        cached: Returns a context inside which graphs are kept. They belong to the parameters at its start: move the
            parameters only outside.
        facts: Returns the current properties of the products.
        reference: Returns the operator with which products are compared to measure their error, None if there is none.
        otherwise: Takes a product by another method where that by the present one is not finite; returns None if no
            method has a finite one.
        is_hessian: True if the matrix is the Hessian of the objective.
    """

    _may_modify_argument = False

    def __init__(
        self,
        objective: Objective,
        product: Callable[[Tensor], Tensor],
        *,
        restrict: Callable[[tuple[str, ...]], ObjectiveOperator],
        cached: Callable[[], AbstractContextManager[None]] = nullcontext,
        facts: Callable[[], ProductFacts] = ProductFacts,
        reference: Callable[[], Reference | None] = lambda: None,
        otherwise: Callable[[Tensor], Tensor | None] = lambda columns: None,
        is_hessian: bool = False,
    ) -> None:
        super().__init__(
            objective.size,
            product,
            dtype=objective.dtype,
            device=objective.device,
            cached=cached,
            facts=facts,
            reference=reference,
        )
        self.undefined_hint = "method='differences' of hessian(objective) may help"
        self.objective = objective
        self.restrict = restrict
        self.is_hessian = is_hessian
        self._otherwise = otherwise
        self._unscaled: ObjectiveOperator | None = None  # A of an operator D A D

    def _finite(self, columns: Tensor, found: Tensor) -> Tensor:
        """Return the product by another method in place of one that is not finite, or raise."""
        other = self._otherwise(columns)
        return super()._finite(columns, found) if other is None else other

    def product_error(self, V: Tensor, images: Tensor) -> ProductError | None:
        """Measure the error of products that were taken, see `SymmetricOperator.product_error`.

        Products in float32 tell the error of float64 no more where they have lost all digits themselves: 1 - p of a
        classifier that fits its data is 0 there. Its relative error in float64 is then the rounding unit over the loss.
        Where the loss is exactly 0 both may have lost the same digits. Two more products show that by their asymmetry;
        the error is then as large as the product.
        """
        found = super().product_error(V, images)
        if found is None or found.share == 1 or self._facts().unit_is_measured:
            return found
        loss = self.objective.value()
        lengths = row_norms(images.mT)
        if loss == 0 and asymmetry(self, seed=0) > _ALL_LOST * torch.finfo(self.dtype).eps:
            return ProductError(torch.zeros_like(found.difference), 1.0, lengths)
        differences = row_norms(found.difference.mT)
        if bool((differences <= _SATURATED * lengths).all()):
            # a single difference may be small by chance; where digits cancel, about 1 / loss units are lost
            slack = torch.minimum(_lost_digits(loss) * lengths, _CHANCE * found.share * differences)
            cancelled = differences > _CANCELLED * torch.finfo(torch.float32).eps * lengths
            return replace(found, slack=found.slack + torch.where(cancelled, slack, 0.0))
        known = MARGIN * torch.finfo(self.dtype).eps / loss if loss > 0 else 1.0
        return replace(found, share=min(1.0, max(found.share, known)))

    def likely_direction(self) -> Tensor | None:
        """Return the gradient for a Hessian: training moves along its top eigenvectors; None for other matrices."""
        return self.objective.gradient() if self.is_hessian else None

    @property
    def lost_digits(self) -> float:
        """Relative error of float64 products of a classifier that fits its data, from 1 - p; 0 if none is known."""
        return _lost_digits(self.objective.value()) if self.dtype == torch.float64 else 0.0

    @property
    def asymmetry_hint(self) -> str:
        """Advice that an algorithm gives if it finds the matrix asymmetric."""
        if self._unscaled is not None:
            return self._unscaled.asymmetry_hint
        loss = self.objective.value()
        if 0 <= loss < _LOST:
            return (
                f"the loss is {loss:.2g}, so near 0 that its curvature has lost all digits (1 - p rounds to 0, also in "
                "float64); measure at an earlier step"
            )
        if not self.is_hessian:
            return super().asymmetry_hint
        if stops_gradients(self.objective, slightly=True):
            mode = "" if self.objective.mode == "eval" else ", or use mode='eval'"
            return (
                "the gradient is not the derivative of the loss, which stops gradients (detach, no_grad) or has a "
                f"function with another backward pass: take what is stopped from a copy of the model{mode}"
            )
        if self.method == "differences":
            return "differences of gradients do not settle here (kinks within a step); measure at other parameters"
        return "a layer of the model has a wrong second derivative; measure with method='differences'"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the coordinates."""
        return self.objective.names

    @property
    def fallback_reason(self) -> str:
        """Reason that `method` replaced the default method; empty if it did not."""
        return self._facts().fallback_reason


def _lost_digits(loss: float) -> float:
    """Return the relative error of a float64 product where the loss is that of a classifier; 0 below all digits."""
    return torch.finfo(torch.float64).eps / loss if loss >= _LOST else 0.0
