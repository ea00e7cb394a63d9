"""Quadratic form of an operator with a bound of its rounding."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.sums import norm

__all__ = ["form_rounding"]

_FLOOR: Final = 16.0  # rounding units of float64 that a form is off by at least, as another order of sums shows


def form_rounding(operator: SymmetricOperator, v: Tensor, image: Tensor) -> float:
    r"""Bound the rounding error of :math:`v^\top A v` by one more product, in another precision.

    Args:
        operator: A.
        v: `(n,)`.
        image: `(n,)`, the product A v that was taken.

    Returns:
        The bound, absolute. Without a reference it is the error that the operator assumes, times the norms of v and of
        A v.
    """
    size = float(norm(v)) * float(norm(image))
    error = operator.product_error(v[:, None], image[:, None])
    if error is None:
        return operator.assumed_error * size
    return float(error.forms(v[:, None])[0]) + _FLOOR * torch.finfo(torch.float64).eps * size
