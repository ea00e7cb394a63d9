"""Block bootstrap: confidence intervals for means over the correlated steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["Array", "block_bootstrap", "block_length", "quotient"]

Array = npt.NDArray[np.float64]
_ENOUGH: Final = 10  # blocks from which an interval counts as converged
_FEWEST: Final = 3  # minimum number of blocks of the automatic block length
_ROUNDING: Final = 1e-12  # relative to the largest value: a series that varies less is constant
_STEEPEST: Final = 0.97  # clip of the lag-1 correlation: beyond it a series is one block
_NORMAL: Final = 1.959964  # 97.5 % quantile of the normal distribution
_EXACT: Final = 2**53  # below it sums of whole numbers have no rounding
_AT_ONCE: Final = 2**18  # places of blocks that are drawn at once


def block_length(series: Array) -> int:
    r"""Return the optimal block length for the variance of a mean, assuming an AR(1) series.

    With lag-1 correlation r and T steps it is :math:`(6 r^2 / (1 - r^2)^2 \cdot T)^{1/3}`, from 1 to T / 3.

    Args:
        series: `(T,)` of any scale; values that are not finite are excluded from the correlation.

    Returns:
        Steps.

    Source:
        D. Politis and H. White (2004), Automatic block-length selection for the dependent bootstrap, Econometric
        Reviews 23(1), 53-70, equation 9, with the sums of an AR(1) series inserted.

    Example:
        >>> block_length(np.tile([1.0, -1.0, -1.0, 1.0], 25))
        1
    """
    known = np.isfinite(series)
    largest = float(np.abs(series[known]).max()) if known.any() else 0.0
    if largest == 0.0:
        return 1
    scaled = np.where(known, series / largest, math.nan)  # no square over- or underflows
    centered = scaled - np.nanmean(scaled)
    square = float(np.nanmean(centered * centered))
    along = centered[1:] * centered[:-1]
    if not square > _ROUNDING**2 or not np.isfinite(along).any():
        return 1
    r = min(max(float(np.nanmean(along)) / square, -_STEEPEST), _STEEPEST)
    best = (6 * r * r / (1 - r * r) ** 2 * len(series)) ** (1 / 3)
    return int(max(1, min(round(best), len(series) // _FEWEST)))


def block_bootstrap(
    rows: Array, statistic: Callable[[Array], Array], *, block: int, draws: int = 2000, seed: int = 0
) -> Estimate:
    r"""Estimate a function of means over the steps of a run, with a 95 % interval that allows for correlated steps.

    Blocks of consecutive steps are drawn with replacement from the run closed to a ring, and the statistic of each draw
    is computed. The ends are the 2.5 % and 97.5 % quantiles of the draws, with their distances from the value scaled by
    :math:`t_{0.975, B-1} / 1.96 \cdot \sqrt{B / (B - 1)}`, because B blocks determine a variance no better than B
    samples. Correlations longer than a block are not accounted for.

    Args:
        rows: `(r, T)`, r numbers per step. A missing number is 0, with a 0 in a row of counts.
        statistic: `(r, draws) -> (draws,)`, a function of sums over the drawn steps that must not depend on their
            number; nan if it is undefined for a draw.
        block: Steps in a block.
        draws: Number of bootstrap draws.
        seed: Seed of the draws.

    Returns:
        The estimate; its value is the statistic of all steps and lies in the interval. If the statistic is undefined
        or infinite for more than 2.5 % of the draws, both ends are infinite; if it is for all steps, the value is nan.
        `samples` is T; `converged` is True if there are at
        least 10 blocks and finite ends.

    Raises:
        ProbeError: The block is shorter than one step or longer than the run.

    Source:
        D. Politis and J. Romano (1992), A circular block-resampling procedure for stationary data; the factor is
        Student's.

    Example:
        >>> found = block_bootstrap(np.array([[2.0, 4.0], [1.0, 2.0]]), lambda s: s[0] / s[1], block=1)
        >>> found.value, found.low, found.high
        (2.0, 2.0, 2.0)
    """
    T = rows.shape[1]
    if not 1 <= block <= T:
        raise ProbeError(f"block must be from 1 to {T} steps, the length of the run, got {block}")
    with np.errstate(over="ignore", invalid="ignore"):  # sums over a diverged run overflow: such draws are lost
        value = float(statistic(rows.sum(1, keepdims=True))[0])
        if not math.isfinite(value):
            return exact_estimate(math.nan)
        blocks = math.ceil(T / block)
        found = statistic(_drawn(rows, block, blocks, draws, seed))
    kept = found[np.isfinite(found)]
    lost = len(found) - len(kept)
    if lost > draws / 40 or blocks < 2:
        return Estimate(value, math.inf, -math.inf, math.inf, T, "standard error", converged=False)
    scale = float(stdtrit(blocks - 1, 0.975)) / _NORMAL * math.sqrt(blocks / (blocks - 1))
    low, high = (float(end) for end in np.quantile(kept, (0.025, 0.975)))
    return Estimate(
        value,
        float(kept.std()) * math.sqrt(blocks / (blocks - 1)),
        value - scale * max(value - low, 0.0),
        value + scale * max(high - value, 0.0),
        T,
        "standard error",
        converged=blocks >= _ENOUGH,
    )


def quotient(sums: Array) -> Array:
    """Return the first row of sums over the second: a ratio of means, or a mean if the second row counts.

    Args:
        sums: `(2, draws)`.

    Returns:
        `(draws,)`; nan unless the second is above 0.
    """
    below = sums[1] > 0
    found: Array = np.where(below, sums[0] / np.where(below, sums[1], 1.0), math.nan)
    return found


def _drawn(rows: Array, block: int, blocks: int, draws: int, seed: int) -> Array:
    """Return the sums over the steps of each draw, `(r, draws)`: a block sum is a difference of two running sums."""
    T = rows.shape[1]
    ring = np.concatenate([rows, rows[:, : block - 1]], axis=1)
    running = np.cumsum(np.pad(ring, ((0, 0), (1, 0))), axis=1)
    sums = running[:, block:] - running[:, :-block]  # (r, T), by the first step of the block
    generator = np.random.default_rng(seed)
    found = np.empty((len(rows), draws))
    few = max(1, _AT_ONCE // blocks)  # draws at once: the numbers are the same, and they stay in the cache
    for begin in range(0, draws, few):
        starts = generator.integers(0, T, (min(few, draws - begin), blocks))
        for row, of_row in zip(sums, found, strict=True):
            of_row[begin : begin + few] = _sum_of(row, starts)
    return found


def _sum_of(row: Array, starts: npt.NDArray[np.int64]) -> Array | float:
    """Return the sum over the blocks of each draw; a row of counts without a gap needs no draw."""
    first = float(row[0])
    if first.is_integer() and abs(first) * starts.shape[1] < _EXACT and bool((row == first).all()):
        return float(first * starts.shape[1])
    drawn: Array = row[starts].sum(1)
    return drawn
