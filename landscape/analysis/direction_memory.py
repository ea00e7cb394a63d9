"""Direction autocorrelation of gradient and shear: of a run over its windows, and of an arm over its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lossscope.landscape.analysis.minibatch_windows import OBJECTS, lagged_cosines_of
from lossscope.landscape.analysis.seed_pooling import MISSING, Pooled, pooled, seed_of
from lossscope.probes.dynamics.direction_memory import (
    DirectionMemory,
    angular_velocity,
    direction_memory,
    memory_difference,
)
from lossscope.probes.statistics.estimate import Estimate

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["ArmMemory", "DirectionOfArm", "memory_of_arm"]


@dataclass(frozen=True)
class _RunMemory:
    """Direction memory over the windows of a run."""

    windows: int
    directions: dict[str, DirectionMemory]  # by object: gradient, and shear if the optimizer takes a second gradient
    differences: dict[int, Estimate]  # D(k) = A_v(k) - A_g(k) by lag; empty without a shear


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


def _run_memory(run: Run, draws: int) -> _RunMemory | None:
    """Compute the direction memory of a run; None if no pair of minibatches was sampled."""
    cosines = lagged_cosines_of(run)
    if not cosines:
        return None
    found = {kind: direction_memory(one, draws=draws) for kind, one in cosines.items()}
    lags = next(iter(cosines.values())).lags
    both = len(cosines) == len(OBJECTS)
    apart = memory_difference(cosines["shear"], cosines["gradient"], draws=draws) if both else ()
    windows = next(iter(cosines.values())).values.shape[1]
    return _RunMemory(windows, found, dict(zip(lags, apart, strict=False)))


def memory_of_arm(runs: Sequence[Run], *, draws: int = 2000) -> ArmMemory | None:
    """Compute the direction memory of an arm, pooled over its seeds if there are several: see `pooled`.

    Args:
        runs: Runs of one arm.
        draws: Number of bootstrap draws over windows.

    Returns:
        The direction memory; None if no pair of minibatches was sampled in any run.
    """
    found = [(seed_of(run), _run_memory(run, draws) or _RunMemory(0, {}, {})) for run in runs]
    kinds = [kind for kind in OBJECTS if any(kind in memory.directions for _, memory in found)]
    if not kinds:
        return None
    lags = sorted({lag for _, memory in found for one in memory.directions.values() for lag in one.lags})
    both = sorted({lag for _, memory in found for lag in memory.differences})
    return ArmMemory(
        sum(memory.windows for _, memory in found),
        tuple(lags),
        {kind: _direction([(seed, memory.directions.get(kind)) for seed, memory in found], lags) for kind in kinds},
        {lag: pooled((seed, memory.differences.get(lag, MISSING)) for seed, memory in found) for lag in both},
    )


def _direction(found: Sequence[tuple[object, DirectionMemory | None]], lags: Sequence[int]) -> DirectionOfArm:
    """Pool one object over the seeds; a seed with None counts as missing."""
    normalized = {lag: pooled((seed, _at(one, "normalized", lag)) for seed, one in found) for lag in lags}
    return DirectionOfArm(
        {lag: pooled((seed, _at(one, "raw", lag)) for seed, one in found) for lag in lags},
        normalized,
        pooled((seed, MISSING if one is None else one.ceiling) for seed, one in found),
        angular_velocity(normalized[1].estimate) if 1 in normalized else MISSING,
        _half_life(normalized),
        next(one.null_sd for _, one in found if one is not None),
    )


def _half_life(normalized: dict[int, Pooled]) -> tuple[float, float]:
    """Return the last lag up to which the interval of A is above 1/2, and the first at which it is below."""
    above, below = 0.0, math.inf
    for lag, one in reversed(normalized.items()):
        below = float(lag) if one.judged and one.estimate.high < 0.5 else below
    for lag, one in normalized.items():
        if not (one.judged and one.estimate.low > 0.5):
            break
        above = float(lag)
    return above, below


def _at(memory: DirectionMemory | None, which: Literal["raw", "normalized"], lag: int) -> Estimate:
    """Return the estimate at a lag; missing if it was not sampled."""
    if memory is None or lag not in memory.lags:
        return MISSING
    estimates: tuple[Estimate, ...] = getattr(memory, which)
    return estimates[memory.lags.index(lag)]
