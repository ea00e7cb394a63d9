"""Several trainings at a time, each in a process of its own."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from multiprocessing import get_context
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Final

from lossscope.landscape.config import TrainConfig
from lossscope.landscape.errors import ConfigError, LandscapeError, TrainingError
from lossscope.landscape.manifest import run_path
from lossscope.landscape.run import Run
from lossscope.landscape.training import resolved, train

__all__ = ["train_all"]

Ending = tuple[str, LandscapeError | None]  # what a training said, and why it failed

_LOOK: Final = 0.2  # seconds between two looks at how far the trainings are

_taken: SynchronizedArray[int] | None = None  # in the process of a training: the steps of each


def train_all(
    configs: Sequence[TrainConfig],
    *,
    jobs: int,
    force: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Run]:
    """The runs that training with these configs made, in their order.

    Each is bit for bit what `train` makes of its config with as many threads: processes share nothing but a count of
    steps. Once a training has failed no other is begun; those under way go on to their end.

    Args:
        configs: What to train; no two may write the same run.
        jobs: How many at a time, at least 1. Each has torch in memory, and holds a core for every one of its `threads`.
        force: Replace runs of those names.
        progress: Called now and then with the steps taken, the steps of all, and how many trainings have ended.

    Raises:
        ConfigError: jobs is below 1, two configs write the same run, or one asks for what does not exist.
        RunError: As `train`.
        TrainingError: As `train`; or a process was ended from outside.
    """
    if jobs < 1:
        raise ConfigError(f"jobs={jobs} is out of range, need at least 1 training at a time")
    asked = [resolved(config) for config in configs]
    paths = [run_path(config.out, config.run_name) for config in asked]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"two trainings would write the same run {twice}: give each a name of its own")
    context = get_context("spawn")  # a forked process may inherit a lock that torch holds
    taken = context.Array("q", max(len(asked), 1))
    steps, ended, errors = sum(config.steps or 0 for config in asked), 0, list[LandscapeError]()
    waiting, under_way = list(enumerate(asked)), set[Future[Ending]]()
    with ProcessPoolExecutor(jobs, context, initializer=_share, initargs=(taken,)) as pool:
        while under_way or (waiting and not errors):
            while waiting and len(under_way) < jobs and not errors:
                under_way.add(pool.submit(_trained, *waiting.pop(0), force))
            done, under_way = wait(under_way, timeout=_LOOK, return_when=FIRST_COMPLETED)
            for future in done:
                said, error = _ending(future)
                sys.stderr.write(said)
                errors += [] if error is None else [error]
            ended += len(done)
            if progress is not None:
                progress(sum(taken[:]), steps, f"{ended} of {len(asked)} runs")
    if errors:
        raise errors[0]
    return [Run.open(path) for path in paths]


def _share(taken: SynchronizedArray[int]) -> None:
    """Keep what this process shares with its parent."""
    global _taken
    _taken = taken


def _trained(slot: int, config: TrainConfig, force: bool) -> Ending:
    """How a training ended; what it said is kept, as beside others it would break their lines."""

    def count(step: int, steps: int, loss: float) -> None:
        if _taken is not None:
            _taken[slot] = step

    with redirect_stderr(io.StringIO()) as said:
        try:
            train(config, force=force, progress=count)
        except LandscapeError as error:
            return said.getvalue(), error
    return said.getvalue(), None


def _ending(future: Future[Ending]) -> Ending:
    """How a training ended, if only because its process did."""
    try:
        return future.result()
    except BrokenProcessPool:
        return "", TrainingError(
            "the process of a training was ended from outside, perhaps for want of memory; what was recorded is kept: "
            "try fewer at a time"
        )
