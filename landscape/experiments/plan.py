"""Plan of an ablation: what is missing, what it will cost, and the smallest effect that its pairs can show."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Final

from lossscope.landscape.experiments.ablation import default_jobs, folder_size, prepared, with_workload
from lossscope.landscape.experiments.grid import Grid
from lossscope.landscape.experiments.one_run import State, folder_of, state_of
from lossscope.landscape.recording.cadence import log_spaced, preset_of
from lossscope.landscape.recording.checkpoints import checkpoints
from lossscope.landscape.run import Run
from lossscope.landscape.storage.compaction import CHECKPOINTS
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.training import train
from lossscope.landscape.verdicts.contrasts import contrasts
from lossscope.landscape.verdicts.rule import LEAST_PAIRS, smallest_effect

__all__ = ["SPREAD", "ArmCost", "Plan", "planned"]

SPREAD: Final = 0.10  # standard deviation of a paired log-ratio, where no pair has been trained; .05 to .15 are usual
_STEPS: Final = 20  # steps that are timed
_START_SECONDS: Final = 6.0  # of a process, before its first step
_STEP_BYTES: Final = 150  # of the tables on disk, for each step
_FEWEST: Final = 3  # pairs from which a spread is read


@dataclass(frozen=True)
class ArmCost:
    """Cost of one run of an arm, predicted from twenty steps."""

    workload: str
    arm: str
    step_seconds: float  # recording of steps included
    evaluation_seconds: float
    seconds: float  # of a run
    bytes: int  # of a run


@dataclass(frozen=True)
class Plan:
    """Runs, cost and power of an ablation that has not begun.

    Attributes:
        runs: Number of runs of the grid.
        states: Number of runs that are there, by state; `absent` are to be trained.
        arms: Cost of each arm.
        jobs: Number of parallel trainings.
        seconds: Predicted time until the end.
        bytes: Predicted size of the runs that are missing.
        pairs: Number of pairs of each contrast on each workload.
        enough: False if a verdict needs more pairs.
        spread: Standard deviation of a paired log-ratio.
        measured: True if the spread is the median over the contrasts of runs that are there; else it is the usual one.
        smallest: Ratio below 1 that the pairs of one contrast call flatter in 80 of 100 tries; nan for one pair.
    """

    runs: int
    states: Mapping[State, int]
    arms: tuple[ArmCost, ...]
    jobs: int
    seconds: float
    bytes: int
    pairs: int
    enough: bool
    spread: float
    measured: bool
    smallest: float


def planned(
    grid: Grid, *, jobs: int | None = None, workload: str | None = None, force: bool = False, time_arms: bool = True
) -> Plan:
    """Return the plan of an ablation. It trains twenty steps of each arm in a temporary folder, and nothing else.

    Args:
        grid: The grid.
        jobs: As in `ablate`.
        workload: As in `ablate`.
        force: As in `ablate`.
        time_arms: False to time nothing; there is then no cost.

    Raises:
        ConfigError: As in `ablate`.
        TrainingError: An arm cannot take twenty steps.
    """
    grid = with_workload(grid, workload)
    configs = prepared(grid, force=force)
    jobs = default_jobs(configs, jobs)
    states = ["absent" if force else state_of(config) for config in configs]
    missing = [one for one, state in zip(configs, states, strict=True) if state not in ("kept", "diverged")]
    arms = {(one.workload, one.arm): one for one in _timed(missing)} if time_arms else {}
    costs = [arms[config.workload, config.arm_name] for config in missing] if time_arms else []
    spread = _spread(grid, [one for one, state in zip(configs, states, strict=True) if state == "kept"])
    pairs = len(grid.seeds)
    return Plan(
        runs=len(configs),
        states=dict(Counter(states)),
        arms=tuple(arms.values()),
        jobs=jobs,
        seconds=sum(one.seconds for one in costs) / jobs + (_START_SECONDS if costs else 0.0),
        bytes=sum(one.bytes for one in costs),
        pairs=pairs,
        enough=pairs >= LEAST_PAIRS,
        spread=SPREAD if spread is None else spread,
        measured=spread is not None,
        smallest=smallest_effect(SPREAD if spread is None else spread, pairs),
    )


def _timed(configs: Sequence[TrainConfig]) -> list[ArmCost]:
    """Return the cost of each arm. The first one is timed twice, as its first time includes what is loaded once."""
    first = {(config.workload, config.arm_name): config for config in reversed(configs)}
    with tempfile.TemporaryDirectory(prefix="lossscope-plan-") as folder:
        for config in list(first.values())[:1]:
            _cost(config, Path(folder) / "warm")
        return [_cost(config, Path(folder)) for config in first.values()]


def _cost(config: TrainConfig, folder: Path) -> ArmCost:
    """Return the cost of a run, after training its first steps in a folder."""
    steps = min(_STEPS, config.steps or _STEPS)
    evaluations = min(2, _evaluations(config))
    few = replace(config, steps=steps, evaluations=evaluations, evaluate_at=None, checkpoints=1, out=str(folder))
    started = perf_counter()
    run = train(replace(few, until_accuracy=None, replay=None))  # what it replays may not be there yet
    seconds = perf_counter() - started
    curvature = float((run.manifest.get("overhead") or {}).get("curvature_seconds", 0.0))
    step = max(seconds - curvature, 0.0) / steps
    evaluation = curvature / max(evaluations, 1)
    whole = step * (config.steps or steps) + evaluation * _evaluations(config)
    return ArmCost(config.workload, config.arm_name, step, evaluation, whole, _bytes(run, config))


def _evaluations(config: TrainConfig) -> int:
    """Return the number of evaluations of a run."""
    if config.evaluate_at is not None:
        return len(set(config.evaluate_at))
    count = preset_of(config.preset).evaluations if config.evaluations is None else config.evaluations
    return len(log_spaced(config.steps or 1, count))


def _bytes(run: Run, config: TrainConfig) -> int:
    """Return the size of a whole run, from that of its first steps."""
    saved = folder_size(run.path / CHECKPOINTS)
    count = preset_of(config.preset).checkpoints if config.checkpoints is None else config.checkpoints
    each = saved / max(len(checkpoints(run.path)), 1)
    return int(folder_size(run.path) - saved + each * count + _STEP_BYTES * (config.steps or 0))


def _spread(grid: Grid, there: Sequence[TrainConfig]) -> float | None:
    """Return the median spread over contrasts and measures of the runs that are there; None for too few."""
    folders = [folder_of(config) for config in there]
    if len(folders) < 2 * _FEWEST or not grid.contrasts:
        return None
    table = contrasts(grid.contrasts, [Run.open(path) for path in folders if os.path.isdir(path)])
    rows = [row for one in table.contrasts for row in one.verdict.rows if row.counts and row.n >= _FEWEST]
    found = sorted(row.spread for row in rows if math.isfinite(row.spread) and row.spread > 0)
    return found[len(found) // 2] if found else None
