"""Direction autocorrelation of an arm with several seeds: ratios of means, with jackknife intervals over the seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from scipy.special import stdtrit

from lossscope.landscape.analysis.minibatch_windows import OBJECTS
from lossscope.landscape.analysis.seed_pooling import MISSING, Pooled, pooled
from lossscope.landscape.analysis.series import FloatArray
from lossscope.probes.dynamics.direction_memory import LaggedCosines, angular_velocity
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["ArmMemory", "DirectionOfArm", "half_life", "jackknifed", "over_seeds"]

Cosines: TypeAlias = Mapping[str, LaggedCosines]  # by object, as `lagged_cosines_of` returns them
Sums: TypeAlias = Sequence[FloatArray | None]  # of each seed: cosine, ceiling and number of windows; None without


@dataclass(frozen=True)
class DirectionOfArm:
    """Direction autocorrelation of one object over the seeds of an arm."""

    raw: dict[int, Pooled]  # by lag
    normalized: dict[int, Pooled]  # A(k) by lag
    ceiling: Pooled
    angular_velocity: Estimate  # radians per step, of A(1) over the seeds
    half_life: tuple[float, float]  # steps: A is above 1/2 up to the first lag, below at the second; 0, inf: unknown
    null_sd: float  # standard deviation of one raw cosine of random vectors


@dataclass(frozen=True)
class ArmMemory:
    """Direction memory over the runs of an arm."""

    windows: int  # total over all runs
    lags: tuple[int, ...]
    directions: dict[str, DirectionOfArm]
    differences: dict[int, Pooled]


def over_seeds(cosines: Sequence[tuple[object, Cosines]]) -> ArmMemory:
    """Compute the direction memory of an arm over its seeds.

    Args:
        cosines: Seed and lagged cosines of each run, of two or more seeds with any. The windows of several runs of one
            seed count as windows of one run; a seed without a value of a number is counted as missing there.

    Returns:
        The direction memory. A and D are ratios of sums over all windows; raw cosines and ceilings are means over the
        seeds with t-intervals. An interval of A has no ends if the interval of the ceiling contains 0.
    """
    seeds = dict.fromkeys(seed for seed, _ in cosines)
    kinds = [kind for kind in OBJECTS if any(kind in found for _, found in cosines)]
    runs = {kind: [[one[kind] for s, one in cosines if s == seed and kind in one] for seed in seeds] for kind in kinds}
    lags = sorted({lag for _, found in cosines for one in found.values() for lag in one.lags})
    sums = {(kind, lag): [_sums(found, lag) for found in runs[kind]] for kind in kinds for lag in lags}
    differences: dict[int, Pooled] = {}
    for lag in lags if len(kinds) == len(OBJECTS) else ():
        shear, gradient = sums["shear", lag], sums["gradient", lag]
        if any(v is not None and g is not None for v, g in zip(shear, gradient, strict=True)):
            differences[lag] = _difference(shear, gradient)
    return ArmMemory(
        sum(max((one.values.shape[1] for one in found.values()), default=0) for _, found in cosines),
        tuple(lags),
        {kind: _direction(runs[kind], {lag: sums[kind, lag] for lag in lags}) for kind in kinds},
        differences,
    )


def jackknifed(sums: Sums, statistic: Callable[[FloatArray], float]) -> Pooled:
    r"""Estimate a function of sums over seeds, with the jackknife interval over the seeds.

    With the pseudo-values :math:`n T - (n-1) T_{-i}` of n seeds, the estimate is their mean, which is without the bias
    of first order, and the interval is Student's of these values.

    Args:
        sums: Sums of each seed; None if the seed has none, which is counted as missing.
        statistic: Function of the sums over all seeds; nan where it is not defined.

    Returns:
        The pooled number. Both ends are infinite with fewer than two seeds, or if leaving one out leaves no number.

    Source:
        R. Miller (1974), The jackknife: a review, Biometrika 61(1), 1-15.
    """
    known = [one for one in sums if one is not None]
    n, missing = len(known), sum(one is None for one in sums)
    whole = statistic(np.sum(known, axis=0)) if known else math.nan
    if not math.isfinite(whole):
        return Pooled(MISSING, 0, missing + n)
    if n == 1:
        return Pooled(Estimate(whole, math.inf, -math.inf, math.inf, 1, "standard error", converged=False), 1, missing)
    values = np.array([n * whole - (n - 1) * statistic(np.sum(known, axis=0) - one) for one in known])
    if not np.isfinite(values).all():
        return Pooled(Estimate(whole, math.inf, -math.inf, math.inf, n, "standard error", converged=False), n, missing)
    mean, stderr = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * stderr
    return Pooled(Estimate(mean, stderr, mean - half, mean + half, n, "standard error"), n, missing)


def _direction(runs: Sequence[Sequence[LaggedCosines]], sums: Mapping[int, Sums]) -> DirectionOfArm:
    """Return the memory of one object, from the runs of each seed and the sums at each lag."""
    normalized = {lag: _ratio(found) for lag, found in sums.items()}
    return DirectionOfArm(
        {lag: _mean(runs, lag) for lag in sums},
        normalized,
        _mean(runs, 0),
        angular_velocity(normalized[1].estimate) if 1 in normalized else MISSING,
        half_life(normalized),
        next((1 / math.sqrt(one.size) for found in runs for one in found if one.size > 0), math.nan),
    )


def _sums(runs: Sequence[LaggedCosines], lag: int) -> FloatArray | None:
    """Return cosine, ceiling and number of the windows of a seed that have both, summed; None if none has."""
    found = [(one.values[1 + one.lags.index(lag)], one.values[0]) for one in runs if lag in one.lags]
    known = [np.isfinite(row) & np.isfinite(ceiling) for row, ceiling in found]
    count = sum(int(one.sum()) for one in known)
    if not count:
        return None
    parts = [(row[one].sum(), ceiling[one].sum()) for (row, ceiling), one in zip(found, known, strict=True)]
    return np.array([*np.sum(parts, axis=0), count], dtype=np.float64)


def _ratio(sums: Sums) -> Pooled:
    """Return A: the ratio of the summed cosines to the summed ceilings; without ends if the ceiling may be 0."""
    return _with_ends(jackknifed(sums, _quotient), _has_ceiling(sums))


def _difference(shear: Sums, gradient: Sums) -> Pooled:
    """Return D, the difference of the two A over the seeds that have both."""
    both = [None if v is None or g is None else np.concatenate([v, g]) for v, g in zip(shear, gradient, strict=True)]
    found = jackknifed(both, lambda one: _quotient(one[:3]) - _quotient(one[3:]))
    ceilings = [[None if one is None else part(one) for one in both] for part in (_first, _second)]
    return _with_ends(found, all(map(_has_ceiling, ceilings)))


def _first(sums: FloatArray) -> FloatArray:
    return sums[:3]


def _second(sums: FloatArray) -> FloatArray:
    return sums[3:]


def _quotient(sums: FloatArray) -> float:
    """Return the summed cosines over the summed ceilings; nan unless these are above 0."""
    return float(sums[0] / sums[1]) if sums[1] > 0 else math.nan


def _has_ceiling(sums: Sums) -> bool:
    """Return True if the interval of the mean ceiling lies above 0, so that it can be a divisor."""
    return jackknifed(sums, lambda one: float(one[1] / one[2])).estimate.low > 0


def _with_ends(found: Pooled, bounded: bool) -> Pooled:
    """Return the number as it is, or without ends."""
    if bounded or not math.isfinite(found.estimate.value):
        return found
    return replace(found, estimate=replace(found.estimate, low=-math.inf, high=math.inf, converged=False))


def _mean(runs: Sequence[Sequence[LaggedCosines]], lag: int) -> Pooled:
    """Return the mean raw cosine at a lag, or the mean ceiling at lag 0, over the means of the seeds."""
    means = []
    for found in runs:
        rows = [one.values[(0, *one.lags).index(lag)] for one in found if lag in (0, *one.lags)]
        values = np.concatenate([row[np.isfinite(row)] for row in rows]) if rows else np.empty(0)
        means.append(float(values.mean()) if len(values) else math.nan)
    return pooled((place, exact_estimate(mean)) for place, mean in enumerate(means))


def half_life(normalized: dict[int, Pooled]) -> tuple[float, float]:
    """Return the last lag up to which the interval of A is above 1/2, and the first at which it is below."""
    above, below = 0.0, math.inf
    for lag, one in reversed(normalized.items()):
        below = float(lag) if one.judged and one.estimate.high < 0.5 else below
    for lag, one in normalized.items():
        if not (one.judged and one.estimate.low > 0.5):
            break
        above = float(lag)
    return above, below
