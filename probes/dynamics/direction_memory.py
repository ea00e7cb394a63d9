"""Noise-corrected direction autocorrelation of shear or gradient over lags, with half-life and angular velocity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.block_bootstrap import Array, block_bootstrap, block_length
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["DirectionMemory", "LaggedCosines", "angular_velocity", "direction_memory", "memory_difference"]


@dataclass(frozen=True, eq=False)
class LaggedCosines:
    """Cosines between vectors of two independent batches, at lag 0 and at each of the lags."""

    lags: tuple[int, ...]  # steps, ascending, without 0
    values: Array  # (1 + lags, T), one column per first step; row 0 is lag 0; nan where a vector is missing or zero
    size: int  # entries of a vector
    # True if columns a lag apart share a vector, as in a series of consecutive steps. False for windows that do not
    # overlap, each with its own first vector from which its lags are counted.
    shared: bool = True


@dataclass(frozen=True)
class DirectionMemory:
    """Direction autocorrelation at each lag."""

    lags: tuple[int, ...]  # steps
    raw: tuple[Estimate, ...]  # mean cosine to a vector of another batch, `lag` steps later
    normalized: tuple[Estimate, ...]  # A(k): raw over the ceiling
    ceiling: Estimate  # mean cosine of two batches at one step
    half_life: float  # steps: the first of `lags` with A below 1/2; nan if there is none
    angular_velocity: Estimate  # arccos A(1), radians per step; nan if lag 1 was not measured
    null_sd: float  # standard deviation of one raw cosine of random vectors: 1 / sqrt(size)


def direction_memory(
    cosines: LaggedCosines, *, block: int | None = None, draws: int = 2000, seed: int = 0
) -> DirectionMemory:
    r"""Estimate the direction autocorrelation A(k), corrected for minibatch noise.

    If a batch's vector is the true one plus independent noise, :math:`\cos(x^B, y^{B'}) \approx c\,\cos(x, y)`, where
    :math:`c` is the share of the squared true length, measured by two batches at one step (the ceiling). Therefore

    .. math:: A(k) = \frac{\mathrm{mean}_t \cos(x_t^B, x_{t+k}^{B'})}{\mathrm{mean}_t \cos(x_t^B, x_t^{B'})}

    is the cosine of the true directions; both means are over the steps that have both cosines. The raw cosine is the
    actual cosine of a stale vector with a later batch.

    Args:
        cosines: From `lagged_cosines`.
        block: Columns in a bootstrap block. Default: for each lag, the optimal length for an autoregressive series with
            its correlation, and more than the lag if columns a lag apart share a vector.
        draws: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The direction memory. If the ceiling is not above 0, the normalized numbers are nan. If it is not above 0 in
        more than 2.5 % of the draws, or there is a single block, both ends of A are infinite. A may exceed 1 by chance;
        the angular velocity is then 0.

    Raises:
        ProbeError: The block is longer than the run or shorter than 1.

    Source:
        docs/measures/shear_memory.md.
    """
    values, lags = cosines.values, cosines.lags
    least = [k + 1 if cosines.shared else 1 for k in lags]
    rows = list(zip(values[1:], least, strict=True))
    raw = tuple(_ratio(row, np.ones_like(row), few, block, draws, seed) for row, few in rows)
    normalized = tuple(_ratio(*_both(row, values[0]), few, block, draws, seed) for row, few in rows)
    below = [k for k, estimate in zip(lags, normalized, strict=True) if estimate.value < 0.5]
    return DirectionMemory(
        lags,
        raw,
        normalized,
        _ratio(values[0], np.ones_like(values[0]), 1, block, draws, seed),
        float(below[0]) if below else math.nan,
        angular_velocity(normalized[0]) if lags[0] == 1 else exact_estimate(math.nan),
        1 / math.sqrt(cosines.size) if cosines.size > 0 else math.nan,
    )


def memory_difference(
    shears: LaggedCosines, gradients: LaggedCosines, *, block: int | None = None, draws: int = 2000, seed: int = 0
) -> tuple[Estimate, ...]:
    r"""Estimate the difference :math:`D(k) = A_v(k) - A_g(k)`, above 0 if the shear turns more slowly.

    The bootstrap draws the same steps for both, so common variation cancels.

    Args:
        shears: Cosines of the shears v.
        gradients: Cosines of the gradients g, at the same steps and lags.
        block: As in `direction_memory`.
        draws: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        One estimate per lag; nan where either A is.

    Raises:
        ProbeError: Steps or lags differ, or the block is longer than the run or shorter than 1.

    Source:
        docs/measures/shear_memory.md.
    """
    if shears.lags != gradients.lags or shears.values.shape != gradients.values.shape:
        raise ProbeError(
            f"shears and gradients must have the same steps and lags, got {shears.values.shape[1]} steps at lags "
            f"{shears.lags} and {gradients.values.shape[1]} at {gradients.lags}: measure shears and gradients at the "
            "same steps"
        )
    found = []
    for row, k in enumerate(shears.lags, 1):
        four = [
            *_both(shears.values[row], shears.values[0]),
            *_both(gradients.values[row], gradients.values[0]),
        ]
        least = k + 1 if shears.shared or gradients.shared else 1
        length = block or max(_length(four[0], four[1], least), _length(four[2], four[3], least))
        found.append(block_bootstrap(_with_counts(four), _difference, block=length, draws=draws, seed=seed))
    return tuple(found)


def angular_velocity(first: Estimate) -> Estimate:
    """Return the angular velocity arccos A(1).

    Args:
        first: A(1), with its interval.

    Returns:
        Radians per step, 0 if A(1) exceeds 1; the interval is that of A(1), mapped with its ends exchanged.
    """
    if math.isnan(first.value):
        return first
    value, high, low = (math.acos(min(max(x, -1.0), 1.0)) for x in (first.value, first.low, first.high))
    slope = math.sqrt(1 - first.value**2) if abs(first.value) < 1 else 0.0
    return replace(first, value=value, low=low, high=high, stderr=first.stderr / slope if slope > 0 else math.nan)


def _ratio(above: Array, below: Array, least: int, block: int | None, draws: int, seed: int) -> Estimate:
    """Estimate the ratio of two means over the columns."""
    length = block or _length(above, below, least)
    return block_bootstrap(_with_counts([above, below]), _quotient, block=length, draws=draws, seed=seed)


def _both(cosines: Array, ceilings: Array) -> tuple[Array, Array]:
    """Return the cosines of a lag and the ceilings of the same columns, both nan where either is missing."""
    known = np.isfinite(cosines) & np.isfinite(ceilings)
    return np.where(known, cosines, math.nan), np.where(known, ceilings, math.nan)


def _length(above: Array, below: Array, least: int) -> int:
    """Return the block length for the influence of each column on the ratio, at least `least`."""
    if not (np.isfinite(above) & np.isfinite(below)).any() or not np.nanmean(below) > 0:
        return 1
    part = above - np.nanmean(above) / np.nanmean(below) * below
    return min(max(block_length(part), least), len(part))


def _with_counts(rows: Sequence[Array]) -> Array:
    """Return each row with 0 for missing values, followed by a row that is 1 where the value is known."""
    return np.stack([part for row in rows for part in (np.nan_to_num(row), np.isfinite(row).astype(np.float64))])


def _quotient(sums: Array) -> Array:
    """Return the mean of the first row over the mean of the second; nan unless that is above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        above, below = sums[0] / sums[1], sums[2] / sums[3]
        found: Array = np.where(below > 0, above / below, math.nan)
    return found


def _difference(sums: Array) -> Array:
    """Return the difference of two quotients."""
    return _quotient(sums[:4]) - _quotient(sums[4:])
