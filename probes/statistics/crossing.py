"""Crossing of a mean curve with a level, and its interval by a bootstrap over the curves that it is the mean of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curves", "crossing_interval"]

Array: TypeAlias = NDArray[np.float64]

_REPLICATES: Final = 2000
_LEAST: Final = 0.9  # share of the replicates that must have a crossing


@dataclass(frozen=True, eq=False)
class Curves:
    """Curves on common abscissas."""

    x: Array  # (k,), ascending
    y: Array  # (k, m), a column for each curve


def crossing_interval(curves: Curves, level: float, at: float, *, seed: int) -> tuple[float, float, float]:
    r"""Return the 95 % interval of the abscissa at which the mean of the curves crosses a level, in the exponential.

    The interval is that of a studentized bootstrap over the curves: each replicate draws curves with replacement,
    finds the crossing of its mean by interpolation between the abscissas, and its standard error from the spread of
    the curves there over the slope of their mean. The distribution of t is then not assumed normal, which a dozen
    skewed curves are far from.

    Args:
        curves: The curves; the mean crosses the level between two abscissas.
        level: The level.
        at: The crossing, as exp of the abscissa.
        seed: Seed of the bootstrap.

    Returns:
        Low and high end and the standard error, all as exp of the abscissa; nan where too few replicates cross.

    Source:
        P. Hall (1988), Theoretical comparison of bootstrap confidence intervals, Ann. Statist. 16(3), 927-953.
    """
    count = curves.y.shape[1]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_REPLICATES)
    crossed, error = _crossings(curves, draws / count, level)
    whole, deviation = _crossings(curves, np.full((1, count), 1 / count), level)
    center, spread = float(whole[0]), float(deviation[0])
    known = np.isfinite(crossed) & np.isfinite(error) & (error > 0)
    if not math.isfinite(spread) or known.mean() < _LEAST:
        if spread == 0:
            return at, at, 0.0
        return math.nan, math.nan, math.nan
    t = (crossed[known] - center) / error[known]
    early, late = np.quantile(t, [0.025, 0.975])
    return at * math.exp(-late * spread), at * math.exp(-early * spread), at * spread


def _crossings(curves: Curves, weights: Array, level: float) -> tuple[Array, Array]:
    """Return crossing and standard error of weighted means of the curves, `(b,)`; nan where there is no crossing."""
    x, count = curves.x, curves.y.shape[1]
    means = weights @ curves.y.T  # (b, k)
    squares = weights @ np.square(curves.y).T
    reached = means >= level
    right = np.argmax(reached & ~np.roll(reached, 1, axis=1) & (np.arange(len(x)) > 0), axis=1)
    there = right > 0
    left = np.maximum(right - 1, 0)
    rows = np.arange(len(means))
    low, high = means[rows, left], means[rows, right]
    width = x[right] - x[left]
    with np.errstate(all="ignore"):
        powers = low > 0
        share = np.where(powers, np.log(level / low) / np.log(high / low), (level - low) / (high - low))
        slope = np.where(powers, level * np.log(high / low), high - low) / width
        variances = np.maximum(squares - np.square(means), 0.0) / (count - 1)
        deviation = (1 - share) * np.sqrt(variances[rows, left]) + share * np.sqrt(variances[rows, right])
        error = deviation / slope
        crossing = np.where(there, x[left] + share * width, math.nan)
    return crossing, np.where(there, error, math.nan)
