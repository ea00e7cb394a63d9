"""Rounding of numbers of an objective, measured by computing them once more in another precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import torch

from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.assumed_rounding import rounding_is_assumed
from lossscope.probes.operators.base import ASSUMED, MARGIN

__all__ = ["number_rounding"]

_FLOOR: Final = 16.0  # rounding units of float64 that a sum is off by at least, as another order of its terms shows


def number_rounding(
    objective: Objective,
    compute: Callable[[Objective], Sequence[float]],
    found: Sequence[float],
    sizes: Sequence[float] | None = None,
) -> list[float]:
    """Bound the rounding errors of numbers that were computed from an objective.

    The numbers are computed again in float64; those of an objective in float64 in float32, where the rounding is larger
    by a known factor. If that fails, or inside `assuming_rounding`, the bound is what is assumed: 100 rounding units of
    the sizes.

    Args:
        objective: The objective.
        compute: Returns the numbers of an objective.
        found: The numbers of this objective.
        sizes: Sizes of the terms that each number is a sum of. Default: the absolute numbers.

    Returns:
        One bound for each number, absolute. Cost: that of `compute`, in float64.
    """
    scales = [abs(number) for number in found] if sizes is None else sizes
    wide = torch.finfo(torch.float64).eps
    narrower = objective.vector.unit > wide
    others: Sequence[float] = ()
    if not rounding_is_assumed():
        with suppress(Exception):  # a copy in another dtype may fail in any way, and then there is no comparison
            others = compute(objective.in_dtype(torch.float64 if narrower else torch.float32))
    share = 1.0 if narrower else MARGIN * wide / torch.finfo(torch.float32).eps
    assumed = ASSUMED * objective.vector.unit
    bounds = [assumed * scale for scale in scales]
    for index, (other, number) in enumerate(zip(others, found, strict=False)):
        if math.isfinite(other):
            bounds[index] = share * abs(other - number) + _FLOOR * wide * scales[index]
    return bounds
