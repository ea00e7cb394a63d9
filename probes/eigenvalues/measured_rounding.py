"""Rounding of the products with which a space is built: measured where that was possible, else assumed."""

from __future__ import annotations

import math
from typing import Final

import torch

from lossscope.probes.operators.base import SymmetricOperator

__all__ = ["MeasuredRounding"]

_FLOOR: Final = 16.0  # rounding units that a measured error has at least: of the basis and of the sums


class MeasuredRounding:
    """Error of the products of an operator, as far as it was measured.

    Args:
        operator: The operator.
    """

    def __init__(self, operator: SymmetricOperator) -> None:
        self._operator = operator
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
