"""Direction autocorrelation of gradient and shear: of a run over its windows, and of an arm over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lossscope.landscape.analysis.arm_memory import ArmMemory, DirectionOfArm, half_life, over_seeds
from lossscope.landscape.analysis.minibatch_windows import OBJECTS, lagged_cosines_of
from lossscope.landscape.analysis.seed_pooling import MISSING, pooled, seed_of
from lossscope.probes.dynamics.direction_memory import (
    DirectionMemory,
    LaggedCosines,
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


def _run_memory(cosines: Mapping[str, LaggedCosines], draws: int) -> _RunMemory | None:
    """Compute the direction memory of a run; None if no pair of minibatches was sampled."""
    if not cosines:
        return None
    found = {kind: direction_memory(one, draws=draws) for kind, one in cosines.items()}
    lags = next(iter(cosines.values())).lags
    both = len(cosines) == len(OBJECTS)
    apart = memory_difference(cosines["shear"], cosines["gradient"], draws=draws) if both else ()
    windows = next(iter(cosines.values())).values.shape[1]
    return _RunMemory(windows, found, dict(zip(lags, apart, strict=False)))


def memory_of_arm(runs: Sequence[Run], *, draws: int = 2000) -> ArmMemory | None:
    """Compute the direction memory of an arm: of its seeds together, or of one seed over its windows.

    With two or more seeds each A is the ratio of the means over all of them, with a jackknife interval over seeds: no
    seed needs an interval of its own, which a seed with few windows or a small ceiling lacks.

    Args:
        runs: Runs of one arm.
        draws: Number of bootstrap draws over windows.

    Returns:
        The direction memory; None if no pair of minibatches was sampled in any run.
    """
    cosines = [(seed_of(run), lagged_cosines_of(run)) for run in runs]
    if len({seed for seed, found in cosines if found}) > 1:
        return over_seeds(cosines)
    found = [(seed, _run_memory(one, draws) or _RunMemory(0, {}, {})) for seed, one in cosines]
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
        half_life(normalized),
        next(one.null_sd for _, one in found if one is not None),
    )


def _at(memory: DirectionMemory | None, which: Literal["raw", "normalized"], lag: int) -> Estimate:
    """Return the estimate at a lag; missing if it was not sampled."""
    if memory is None or lag not in memory.lags:
        return MISSING
    estimates: tuple[Estimate, ...] = getattr(memory, which)
    return estimates[memory.lags.index(lag)]
