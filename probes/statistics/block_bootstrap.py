"""Intervals for means over the steps of a run, which are not independent: whole blocks of steps are drawn again."""

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
_ENOUGH: Final = 10  # blocks that an interval must rest on to be trusted
_FEWEST: Final = 3  # blocks that a run is cut into by itself
_ROUNDING: Final = 1e-12  # of the largest number: a series that varies less is constant
_STEEPEST: Final = 0.97  # lag-1 correlation that counts at most: beyond it a series is one block
_NORMAL: Final = 1.959964  # the 97.5 % quantile that the spread of the draws stands for


def block_length(series: Array) -> int:
    r"""The length of blocks that estimates the variance of a mean best, were the series autoregressive of order one.

    With lag-1 correlation r and T steps it is :math:`(6 r^2 / (1 - r^2)^2 \cdot T)^{1/3}`, from 1 to T / 3.

    Args:
        series: `(T,)`; steps that are nan are left out of the correlation.

    Returns:
        Steps.

    Source:
        D. Politis and H. White (2004), Automatic block-length selection for the dependent bootstrap, Econometric
        Reviews 23(1), 53-70, equation 9, with the sums of an AR(1) series put in.

    Example:
        >>> block_length(np.tile([1.0, -1.0, -1.0, 1.0], 25))
        1
    """
    centered = series - np.nanmean(series)
    square = float(np.nanmean(centered * centered))
    along = centered[1:] * centered[:-1]
    if not square > (_ROUNDING * float(np.nanmax(np.abs(series)))) ** 2 or not np.isfinite(along).any():
        return 1
    r = min(max(float(np.nanmean(along)) / square, -_STEEPEST), _STEEPEST)
    best = (6 * r * r / (1 - r * r) ** 2 * len(series)) ** (1 / 3)
    return int(max(1, min(round(best), len(series) // _FEWEST)))


def block_bootstrap(
    rows: Array, statistic: Callable[[Array], Array], *, block: int, draws: int = 2000, seed: int = 0
) -> Estimate:
    r"""A function of means over the steps of a run, with a 95 % interval that knows that steps are not independent.

    Blocks of consecutive steps are drawn with replacement, the run closed to a ring, and the statistic is taken of each
    draw. The ends are the 2.5 % and 97.5 % quantiles of the draws, moved away from the value by
    :math:`t_{0.975, B-1} / 1.96 \cdot \sqrt{B / (B - 1)}`, because B blocks tell a variance no better than B samples
    do. Dependence over more than a block is not seen.

    Args:
        rows: `(r, T)`, r numbers for each step. A step without a number has a 0 there, and a 0 in a row that counts.
        statistic: `(r, draws) -> (draws,)`, of sums over the drawn steps; it must not depend on how many they are. nan
            where a draw has no such number.
        block: Steps in a block.
        draws: How many.
        seed: Of the draws.

    Returns:
        The estimate; its value is the statistic of all steps and lies in the interval. Where more than 2.5 % of
        the draws have no number, both ends are infinite. `samples` is T, `converged` says that there are at least 10
        blocks and finite ends.

    Raises:
        ProbeError: the block is shorter than one step or longer than the run.

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
        raise ProbeError(f"block={block} is out of range, need 1 to {T} steps, the length of the run")
    value = float(statistic(rows.sum(1, keepdims=True))[0])
    if math.isnan(value):
        return exact_estimate(math.nan)
    blocks = math.ceil(T / block)
    found = statistic(_drawn(rows, block, blocks, draws, seed))
    lost, kept = int(np.isnan(found).sum()), found[~np.isnan(found)]
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
    """The first row of sums over the second: a ratio of means, or with a row that counts a mean.

    Args:
        sums: `(2, draws)`.

    Returns:
        `(draws,)`; nan where the second is not above 0.
    """
    below = sums[1] > 0
    found: Array = np.where(below, sums[0] / np.where(below, sums[1], 1.0), math.nan)
    return found


def _drawn(rows: Array, block: int, blocks: int, draws: int, seed: int) -> Array:
    """The sums over the steps of each draw, `(r, draws)`: a block's sum is a difference of two running sums."""
    T = rows.shape[1]
    ring = np.concatenate([rows, rows[:, : block - 1]], axis=1)
    running = np.cumsum(np.pad(ring, ((0, 0), (1, 0))), axis=1)
    sums = running[:, block:] - running[:, :-block]  # (r, T), by the first step of the block
    starts = np.random.default_rng(seed).integers(0, T, (draws, blocks))
    return np.stack([row[starts].sum(1) for row in sums])
