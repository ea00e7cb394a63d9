"""How long a shear, or a gradient, keeps its direction, with the noise of minibatches taken out."""

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
    """Cosines between vectors of two independent batches, at each step and some steps apart."""

    lags: tuple[int, ...]  # steps, ascending, without 0
    values: Array  # (1 + lags, T), a column for each first step; row 0 is lag 0; nan where a vector is missing or zero
    size: int  # numbers in a vector
    # Whether columns some steps apart share a vector, as those of every step in a row do. False for windows, each with
    # a first vector of its own that its lags are counted from, and which do not overlap.
    shared: bool = True


@dataclass(frozen=True)
class DirectionMemory:
    """How a direction keeps, at each lag."""

    lags: tuple[int, ...]  # steps
    raw: tuple[Estimate, ...]  # mean cosine to a vector of another batch, `lag` steps later
    normalized: tuple[Estimate, ...]  # A(k): the same over the ceiling
    ceiling: Estimate  # mean cosine of two batches at one step
    half_life: float  # steps: the first lag of `lags` with A below 1/2; nan where there is none
    angular_velocity: Estimate  # arccos A(1), radians a step; a gap where lag 1 was not measured
    null_sd: float  # standard deviation of one raw cosine, were both vectors random: 1 / sqrt(size)


def direction_memory(
    cosines: LaggedCosines, *, block: int | None = None, draws: int = 2000, seed: int = 0
) -> DirectionMemory:
    r"""How long a direction keeps, in units of what the noise of batches lets through.

    Where a batch's vector is the true one and independent noise, :math:`\cos(x^B, y^{B'}) \approx c\,\cos(x, y)` with
    the squared true length's share :math:`c`, which is what two batches show at one step (the ceiling). So

    .. math:: A(k) = \frac{\mathrm{mean}_t \cos(x_t^B, x_{t+k}^{B'})}{\mathrm{mean}_t \cos(x_t^B, x_t^{B'})}

    is the cosine of the true directions; both means are over the steps that have both cosines. The raw cosine is what a
    stale vector really has in common with a later batch.

    Args:
        cosines: From `lagged_cosines`.
        block: Columns in a block of the bootstrap. Default: of each lag, what an autoregressive series of its
            correlation wants, and more than the lag where columns a lag apart share a vector.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The memory. Where the ceiling is not above 0 nothing can be normalized: gaps. Where it is not above 0 in more
        than 2.5 % of the draws, or there is one block only, both ends of A are infinite. A may exceed 1 by chance; the
        angular velocity is then 0.

    Raises:
        ProbeError: the block does not fit the run.

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
        1 / math.sqrt(cosines.size),
    )


def memory_difference(
    shears: LaggedCosines, gradients: LaggedCosines, *, block: int | None = None, draws: int = 2000, seed: int = 0
) -> tuple[Estimate, ...]:
    r"""The difference :math:`D(k) = A_v(k) - A_g(k)`: above 0 where the shear turns more slowly than the gradient.

    The same steps are drawn for both, so what they have in common cancels.

    Args:
        shears: Of the shears v.
        gradients: Of the gradients g, at the same steps and lags.
        block: As in `direction_memory`.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        One estimate for each lag; a gap where either has no A.

    Raises:
        ProbeError: steps or lags differ, or the block does not fit.

    Source:
        docs/measures/shear_memory.md.
    """
    if shears.lags != gradients.lags or shears.values.shape != gradients.values.shape:
        raise ProbeError(
            f"{shears.values.shape[1]} steps at lags {shears.lags} and {gradients.values.shape[1]} at {gradients.lags} "
            "differ: measure shears and gradients at the same steps"
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
    """The angle whose cosine is A(1).

    Args:
        first: A(1), with its interval.

    Returns:
        Radians a step, 0 where A(1) exceeds 1; the ends of the interval are those of A(1), which change places.
    """
    if math.isnan(first.value):
        return first
    value, high, low = (math.acos(min(max(x, -1.0), 1.0)) for x in (first.value, first.low, first.high))
    slope = math.sqrt(max(1 - first.value**2, 0.0))
    return replace(first, value=value, low=low, high=high, stderr=first.stderr / slope if slope > 0 else math.nan)


def _ratio(above: Array, below: Array, least: int, block: int | None, draws: int, seed: int) -> Estimate:
    """The ratio of two means over the columns."""
    length = block or _length(above, below, least)
    return block_bootstrap(_with_counts([above, below]), _quotient, block=length, draws=draws, seed=seed)


def _both(cosines: Array, ceilings: Array) -> tuple[Array, Array]:
    """The cosines of a lag and the ceilings of the same columns: nan where either is missing."""
    known = np.isfinite(cosines) & np.isfinite(ceilings)
    return np.where(known, cosines, math.nan), np.where(known, ceilings, math.nan)


def _length(above: Array, below: Array, least: int) -> int:
    """The length of blocks: of the part of each column in the ratio, and `least` at the least."""
    if not (np.isfinite(above) & np.isfinite(below)).any() or not np.nanmean(below) > 0:
        return 1
    part = above - np.nanmean(above) / np.nanmean(below) * below
    return min(max(block_length(part), least), len(part))


def _with_counts(rows: Sequence[Array]) -> Array:
    """Each row without its gaps, followed by where it has none."""
    return np.stack([part for row in rows for part in (np.nan_to_num(row), np.isfinite(row).astype(np.float64))])


def _quotient(sums: Array) -> Array:
    """The mean of the first over the mean of the second; nan where that is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        above, below = sums[0] / sums[1], sums[2] / sums[3]
        found: Array = np.where(below > 0, above / below, math.nan)
    return found


def _difference(sums: Array) -> Array:
    """The difference of two quotients."""
    return _quotient(sums[:4]) - _quotient(sums[4:])
