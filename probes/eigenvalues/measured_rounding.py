"""Rounding of the products with which a space is built: measured where that was possible, else assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.operators.base import ProductError, SymmetricOperator
from lossscope.probes.sums import row_norms

__all__ = ["MeasuredRounding", "RandomRounding", "random_rounding"]

_FLOOR: Final = 16.0  # rounding units that a measured error has at least: of the basis and of the sums


@dataclass(frozen=True)
class RandomRounding:
    """Rounding E of products with random vectors z of any direction: mean of |Ez|^2 / |z|^2 and of |z'Ez| / |z|^2."""

    square: float
    form: float


def random_rounding(error: ProductError | None, Z: Tensor) -> RandomRounding | None:
    """Return the rounding of products with random vectors `(n, k)`; None if it was not measured."""
    if error is None:
        return None
    squares = row_norms(Z.mT).square()
    used = squares > 0
    return RandomRounding(_mean((error.norms.square() / squares)[used]), _mean((error.forms(Z) / squares)[used]))


def _mean(numbers: Tensor) -> float:
    """Return a mean, 0 of no numbers."""
    return float(numbers.mean()) if numbers.numel() else 0.0


class MeasuredRounding:
    """Error of the products of an operator, as far as it was measured.

    Args:
        operator: The operator.

    Attributes:
        random: Rounding of products with random vectors; None if it was not measured.
    """

    def __init__(self, operator: SymmetricOperator) -> None:
        self._operator = operator
        self.random: RandomRounding | None = None
        self._error = math.nan  # measured bound of |E v| for a unit vector v, absolute

    def rounding(self, scale: float) -> float:
        """Return a bound of the 2-norm of the error of a product with a unit vector.

        Args:
            scale: Largest absolute eigenvalue.

        Returns:
            The measured bound, at least 16 rounding units; what the operator assumes if nothing was measured.
        """
        if math.isnan(self._error):
            return self._operator.assumed_error * scale
        return max(self._error, _FLOOR * torch.finfo(self._operator.dtype).eps * scale)

    @property
    def measured_error(self) -> float:
        """Measured bound of the error of a product with a unit vector; 0 if nothing was measured."""
        return 0.0 if math.isnan(self._error) else self._error

    def raise_error(self, error: float) -> None:
        """Raise the measured error to a larger one.

        Args:
            error: Bound of the 2-norm of the error of a product with a unit vector, absolute.
        """
        self._error = error if math.isnan(self._error) else max(self._error, error)
