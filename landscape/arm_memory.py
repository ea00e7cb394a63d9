"""How long gradient and shear keep their direction: of a run over its windows, and of an arm over its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lossscope.landscape.pooling import Pooled, pooled, seed_of
from lossscope.landscape.windows import OBJECTS, lagged_cosines_of
from lossscope.probes.estimate import Estimate, exact_estimate
from lossscope.probes.memory import DirectionMemory, angular_velocity, direction_memory, memory_difference

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["ArmMemory", "DirectionOfArm", "RunMemory", "memory_of_arm", "memory_of_run"]


@dataclass(frozen=True)
class RunMemory:
    """What the windows of a run show."""

    windows: int
    directions: dict[str, DirectionMemory]  # by object: gradient, and shear where the optimizer ascends
    differences: dict[int, Estimate]  # D(k) = A_v(k) - A_g(k) by lag; empty without a shear


@dataclass(frozen=True)
class DirectionOfArm:
    """How one object keeps its direction, over the seeds of an arm."""

    raw: dict[int, Pooled]  # by lag
    normalised: dict[int, Pooled]  # A(k) by lag
    ceiling: Pooled
    angular_velocity: Estimate  # radians a step, of the A(1) over the seeds
    half_life: float  # steps: the first lag at which A is below 1/2; nan where there is none
    null_sd: float  # of one raw cosine of random vectors


@dataclass(frozen=True)
class ArmMemory:
    """What the windows of an arm's runs show."""

    windows: int  # of all runs
    lags: tuple[int, ...]
    directions: dict[str, DirectionOfArm]
    differences: dict[int, Pooled]


def memory_of_run(run: Run, *, draws: int = 2000) -> RunMemory | None:
    """How long gradient and shear kept their direction in a run.

    Args:
        run: any run.
        draws: of the bootstrap over windows.

    Returns:
        The memory; None where no pair of minibatches was looked at.
    """
    cosines = lagged_cosines_of(run)
    if not cosines:
        return None
    found = {kind: direction_memory(one, draws=draws) for kind, one in cosines.items()}
    lags = next(iter(cosines.values())).lags
    both = len(cosines) == len(OBJECTS)
    apart = memory_difference(cosines["shear"], cosines["gradient"], draws=draws) if both else ()
    windows = next(iter(cosines.values())).values.shape[1]
    return RunMemory(windows, found, dict(zip(lags, apart, strict=False)))


def memory_of_arm(runs: Sequence[Run], *, draws: int = 2000) -> ArmMemory | None:
    """The memories of an arm's runs as one, over its seeds where there are several: see `pooled`.

    Args:
        runs: the runs of one arm.
        draws: of the bootstraps over windows.

    Returns:
        The memory; None where no run has any.
    """
    found = [(seed_of(run), memory) for run in runs if (memory := memory_of_run(run, draws=draws)) is not None]
    if not found:
        return None
    kinds = [kind for kind in OBJECTS if any(kind in memory.directions for _, memory in found)]
    lags = sorted({lag for _, memory in found for one in memory.directions.values() for lag in one.lags})
    return ArmMemory(
        sum(memory.windows for _, memory in found),
        tuple(lags),
        {
            kind: _direction([(seed, memory.directions[kind]) for seed, memory in found if kind in memory.directions])
            for kind in kinds
        },
        {
            lag: pooled((seed, memory.differences[lag]) for seed, memory in found if lag in memory.differences)
            for lag in lags
            if any(lag in memory.differences for _, memory in found)
        },
    )


def _direction(found: Sequence[tuple[object, DirectionMemory]]) -> DirectionOfArm:
    """One object over the seeds."""
    lags = sorted({lag for _, one in found for lag in one.lags})
    normalised = {lag: pooled((seed, _at(one, one.normalised, lag)) for seed, one in found) for lag in lags}
    below = [lag for lag, one in normalised.items() if one.estimate.value < 0.5]
    return DirectionOfArm(
        {lag: pooled((seed, _at(one, one.raw, lag)) for seed, one in found) for lag in lags},
        normalised,
        pooled((seed, one.ceiling) for seed, one in found),
        angular_velocity(normalised[1].estimate) if 1 in normalised else exact_estimate(math.nan),
        float(below[0]) if below else math.nan,
        found[0][1].null_sd,
    )


def _at(memory: DirectionMemory, estimates: Sequence[Estimate], lag: int) -> Estimate:
    """The estimate of a lag; a gap where it was not looked at."""
    return estimates[memory.lags.index(lag)] if lag in memory.lags else exact_estimate(math.nan)
