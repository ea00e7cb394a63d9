"""Ablation: train what is missing of a grid, in parallel; go on where it stopped and after runs that failed."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lossscope.landscape.errors import ConfigError, LandscapeError, TrainingError
from lossscope.landscape.experiments.backends import check_backend, run_on
from lossscope.landscape.experiments.grid import Grid
from lossscope.landscape.experiments.grid_check import resolved_configs
from lossscope.landscape.experiments.one_run import (
    LOST,
    Outcome,
    Task,
    check_same,
    folder_of,
    outcome_of,
    state_of,
    work,
)
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_folder import is_recorded
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.parallel import Ending, Progress, run_tasks, sigterm_raises
from lossscope.landscape.training.user_workload import absolute_place, register_workload

__all__ = ["Ablation", "ablate", "cores", "default_jobs", "folder_size", "prepared", "with_workload"]

_WAIT_SECONDS: Final = 0.5  # between two looks at a run that another process records
_ROUNDS: Final = 2  # of a backend in which a run is lost, until it is taken for the one that ends its process
_KILLED: Final = "its process was killed, perhaps because memory ran out; the next ablation goes on with it"


@dataclass(frozen=True)
class Ablation:
    """An ablation that has ended: a grid, and how each of its runs ended."""

    grid: Grid
    outcomes: tuple[Outcome, ...]  # in the order of `grid.configs()`
    seconds: float

    @property
    def finished(self) -> list[Outcome]:
        """The outcomes of runs that have all of their steps."""
        return [one for one in self.outcomes if one.finished]

    @property
    def lost(self) -> list[Outcome]:
        """The outcomes of the others: diverged, failed or killed."""
        return [one for one in self.outcomes if not one.finished]

    @property
    def runs(self) -> list[Run]:
        """The runs that have all of their steps, and those whose loss was lost."""
        return [Run.open(self.grid.folder / one.name) for one in self.outcomes if one.finished or one.status == LOST]

    @property
    def bytes(self) -> int:
        """Size of the runs on disk."""
        return sum(folder_size(self.grid.folder / one.name) for one in self.outcomes)


def ablate(
    grid: Grid,
    *,
    jobs: int | None = None,
    backend: str | None = None,
    workload: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Ablation:
    """Train the runs of a grid that are missing, and return how each run ended.

    A finished run with the same config is kept; one that was interrupted goes on from its last checkpoint, and holds
    the same numbers as an uninterrupted one. A run whose loss is lost is a result: it is kept, and listed. A process
    that is killed loses its own run only. Runs do not depend on the number of jobs. Several ablations may work on one
    folder at the same time: each waits for the runs that another one records. A script must call this under
    `if __name__ == "__main__":`, as every process imports it.

    Args:
        grid: The grid.
        jobs: Number of parallel trainings. Default: the number of cores over that of the grid's threads.
        backend: Backend of joblib, such as `loky` or `dask`, in place of processes that can be interrupted within a
            step and show their progress. All of its machines must see the folder under one path.
        workload: `FILE.py:NAME`, a function that returns the workload to train; this runs the file, in every process.
        force: Replace the runs that are there.
        progress: As in `train_all`.

    Raises:
        ConfigError: The grid, `jobs` or the backend is not allowed, or a run in the folder has another config.
        TrainingError: The backend failed.
    """
    started = time.monotonic()
    grid = with_workload(grid, workload)
    configs = prepared(grid, force=force)
    jobs = default_jobs(configs, jobs)
    if backend is not None:
        check_backend(backend)
    code = None if workload is None else absolute_place(workload)
    tasks = {slot: Task(config, code, force) for slot, config in enumerate(configs)}
    outcomes = {} if force else _there(configs)
    work_on = _Work(tasks, outcomes, jobs, backend, progress)
    with sigterm_raises():
        work_on.all()
    return Ablation(grid, tuple(outcomes[slot] for slot in sorted(outcomes)), time.monotonic() - started)


def with_workload(grid: Grid, place: str | None) -> Grid:
    """Return the grid with the user's workload in place of its own, after registering it in this process."""
    return grid if place is None else replace(grid, workloads=(register_workload(absolute_place(place)).name,))


def prepared(grid: Grid, *, force: bool) -> list[TrainConfig]:
    """Return the configs of all runs, after checking the grid and the runs that are there.

    Raises:
        ConfigError: A setting is not allowed, or a run has another config and `force` is not given.
    """
    configs = resolved_configs(grid)
    for config in () if force else configs:
        check_same(config)
    return configs


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_jobs(configs: Sequence[TrainConfig], jobs: int | None) -> int:
    """Return the number of parallel trainings: that which was asked for, else one for each core.

    Raises:
        ConfigError: It is below 1, or more cores are needed than there are.
    """
    threads = max(config.threads or 1 for config in configs)
    if jobs is None:
        return max(1, cores() // threads)
    if jobs < 1:
        raise ConfigError(f"jobs must be >= 1, got {jobs}")
    if threads > 1 and jobs * threads > cores():
        raise ConfigError(
            f"{jobs} jobs of {threads} threads need {jobs * threads} cores, there are {cores()}: use --jobs "
            f"{max(1, cores() // threads)}, or threads = 1 in the grid"
        )
    return jobs


def _there(configs: Sequence[TrainConfig]) -> dict[int, Outcome]:
    """Return the outcomes of the runs that need no training."""
    found = {}
    for slot, config in enumerate(configs):
        state = state_of(config)
        if state == "kept":
            found[slot] = outcome_of(config, "kept")
        elif state == "diverged":
            how = str(Run.open(folder_of(config)).manifest.get("how_it_ended"))
            found[slot] = outcome_of(config, "diverged", how)
    return found


class _Work:
    """Tasks of an ablation, and the outcomes that there are so far."""

    def __init__(
        self,
        tasks: dict[int, Task],
        outcomes: dict[int, Outcome],
        jobs: int,
        backend: str | None,
        progress: Progress | None,
    ) -> None:
        self._tasks, self._outcomes = tasks, outcomes
        self._jobs, self._backend, self._progress = jobs, backend, progress

    def all(self) -> None:
        """Work until each task has an outcome, and no run is left to another process."""
        due = [slot for slot in self._tasks if slot not in self._outcomes]
        replays = [slot for slot in due if self._tasks[slot].config.replay is not None]
        for stage in ([slot for slot in due if slot not in replays], replays):  # a replay reads a run that has ended
            self._stage(stage)

    def _stage(self, due: list[int]) -> None:
        """Work until each of some tasks has an outcome, and none of their runs is left to another process."""
        while due:
            if self._backend is None:
                self._in_processes(due)
            else:
                self._on_backend(self._backend, due)
            due = self._free([slot for slot in due if self._outcomes[slot].status == "busy"])

    def _free(self, busy: list[int]) -> list[int]:
        """Wait for runs that other processes record until one of them is free; return those that are."""
        while busy:
            free = [slot for slot in busy if not is_recorded(folder_of(self._tasks[slot].config))]
            if free:
                for slot in free:
                    self._tasks[slot] = replace(self._tasks[slot], replace=False)
                return busy  # those that are still recorded are looked at again
            if self._progress is not None:
                self._progress(0, 1, f"waiting for {len(busy)} runs that another process records")
            time.sleep(_WAIT_SECONDS)
        return []

    def _in_processes(self, due: Sequence[int]) -> None:
        """Run tasks in processes of this machine."""

        def done(index: int, ending: Ending) -> bool:
            """Keep the outcome of a task; go on whatever it is."""
            slot = due[index]
            if isinstance(ending.error, BrokenProcessPool):
                self._outcomes[slot] = outcome_of(self._tasks[slot].config, "killed", _KILLED)
            elif ending.error is not None:
                raise ending.error
            else:
                self._outcomes[slot] = ending.value
            return True

        tasks = [self._tasks[slot] for slot in due]
        steps = [task.config.steps or 0 for task in tasks]
        failure = run_tasks(
            work, tasks, steps=steps, jobs=min(self._jobs, len(tasks)), done=done, progress=self._progress, quiet=True
        )
        if failure is not None:
            raise failure

    def _on_backend(self, backend: str, due: Sequence[int]) -> None:
        """Run tasks on a backend of joblib; again without those that seem to end its processes, if it breaks."""
        left, lost = {slot: self._remote(slot) for slot in due}, Counter[int]()
        steps = {slot: task.config.steps or 0 for slot, task in left.items()}

        def done(slot: int, outcome: Outcome) -> None:
            """Keep the outcome of a task."""
            self._outcomes[slot] = outcome
            del left[slot]
            if self._progress is not None:
                taken = sum(steps.values()) - sum(steps[one] for one in left)
                self._progress(taken, sum(steps.values()), f"{len(due) - len(left)} of {len(due)} runs")

        while left:
            before = {slot: _begun(task) for slot, task in left.items()}
            try:
                run_on(backend, list(left.items()), self._jobs, done)
            except LandscapeError:
                raise
            except Exception as error:
                crashed = [slot for slot, task in left.items() if _begun(task) != before[slot]]
                if not crashed:
                    raise TrainingError(f"backend {backend} failed: {type(error).__name__}: {error}") from error
                lost.update(crashed)
                for slot in [slot for slot in crashed if lost[slot] == _ROUNDS]:
                    done(slot, outcome_of(left[slot].config, "killed", _KILLED))

    def _remote(self, slot: int) -> Task:
        """Return a task with an absolute path, as a backend's processes may have another folder."""
        task = self._tasks[slot]
        return replace(task, config=replace(task.config, out=str(Path(task.config.out).absolute())))


def _begun(task: Task) -> object:
    """Return what changes when a run is begun or goes on: the time and size of its folder's entries."""
    path = folder_of(task.config)
    try:
        return sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(path))
    except OSError:
        return None


def folder_size(folder: Path) -> int:
    """Return the size of the files in a folder, in bytes."""
    return sum(_size(Path(place, name)) for place, _, names in os.walk(folder) for name in names)


def _size(path: Path) -> int:
    """Return the size of a file; 0 if it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
