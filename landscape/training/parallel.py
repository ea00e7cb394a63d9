"""Several trainings at a time, in processes of their own."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from ctypes import Array, c_longlong
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Final, TypeAlias

import torch

from lossscope.landscape.errors import ConfigError, LandscapeError, TrainingError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.manifest import run_path
from lossscope.landscape.storage.run_folder import check_free
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.training import resolved, train

__all__ = ["train_all"]

Counts: TypeAlias = "Array[c_longlong]"  # the steps of each training, and last whether all are to stop
Ending: TypeAlias = tuple[str, LandscapeError | KeyboardInterrupt | None]  # what a training said, and why it failed
Progress: TypeAlias = Callable[[int, int, str], None]

_LOOK: Final = 0.2  # seconds between two looks at how far the trainings are

_counts: Counts | None = None  # in the process of a training


def train_all(
    configs: Sequence[TrainConfig], *, jobs: int, force: bool = False, progress: Progress | None = None
) -> list[Run]:
    """The runs that training with these configs made, in their order.

    Each is bit for bit what `train` makes of its config with as many threads: the processes share nothing but a count
    of steps. Once a training has failed no other is begun; those under way go on to their end. An interrupt, or what
    `progress` raises, ends them after the step they are at. A script must call this under
    `if __name__ == "__main__":`, as every process imports it.

    Args:
        configs: What to train; no two may write the same run.
        jobs: How many at a time, at least 1. Each has torch in memory, and holds a core for every one of its `threads`.
        force: Replace runs of those names.
        progress: Called now and then with the steps taken, the steps of all if none ends early, and how many trainings
            have ended.

    Raises:
        ConfigError: jobs is below 1, two configs write the same run, or one asks for what does not exist.
        RunError: As `train`; before any training begins where a run exists.
        TrainingError: As `train`; or a process was ended from outside, and the others with it.
    """
    if jobs < 1:
        raise ConfigError(f"jobs={jobs} is out of range, need at least 1 training at a time")
    asked = [resolved(config) for config in configs]
    paths = [run_path(config.out, config.run_name) for config in asked]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"two trainings would write the same run {path}: give each a name of its own")
        check_free(path, force)
    failure = _failure(asked, jobs, force, progress)
    if isinstance(failure, BrokenProcessPool):
        raise TrainingError(
            "the process of a training could not begin, or was ended from outside, perhaps for want of memory, and the "
            "others with it; what was recorded is kept: try fewer at a time"
        ) from failure
    if failure is not None:
        raise failure
    return [Run.open(path) for path in paths]


def _failure(asked: Sequence[TrainConfig], jobs: int, force: bool, progress: Progress | None) -> BaseException | None:
    """Train them all, and why the first one failed that did."""
    context = get_context("spawn")  # a forked process may inherit a lock that torch holds
    counts: Counts = context.RawArray(c_longlong, len(asked) + 1)
    waiting, under_way, failures = list(enumerate(asked)), set[Future[Ending]](), list[BaseException]()
    steps, ended = sum(config.steps or 0 for config in asked), 0
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(counts,)) as pool:
        while under_way or (waiting and not failures):
            try:
                while waiting and len(under_way) < jobs and not failures:
                    with _not_interrupted():
                        under_way.add(pool.submit(_trained, *waiting.pop(0), force))
                done, under_way = wait(under_way, timeout=_LOOK, return_when=FIRST_COMPLETED)
                ended += len(done)
                for said, failure in (future.result() for future in done):
                    sys.stderr.write(said)
                    failures += [] if failure is None else [failure]
                if progress is not None:
                    progress(sum(counts[:-1]), steps, f"{ended} of {len(asked)} runs")
            except BaseException as failure:
                failures.append(failure)
                counts[len(asked)] = True  # those under way stop after the step they are at
    return failures[0] if failures else None


@contextmanager
def _not_interrupted() -> Iterator[None]:
    """Hold interrupts back, and from a process begun meanwhile for good: it is told to stop in another way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(counts: Counts) -> None:
    """In a process of its own: keep what it shares with its parent, and end where that has been killed."""
    global _counts
    _counts = counts
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _trained(slot: int, config: TrainConfig, force: bool) -> Ending:
    """How a training ended; what it said is kept, as beside others it would break their lines."""
    counts, threads = _counts, torch.get_num_threads()
    if counts is None:
        raise RuntimeError("a training of several runs in a process of its own only")

    def count(step: int, steps: int, loss: float) -> None:
        counts[slot] = step
        if counts[len(counts) - 1]:
            raise KeyboardInterrupt

    with redirect_stderr(io.StringIO()) as said:
        try:
            count(0, 0, 0.0)  # a process takes seconds to begin, and all may have been stopped meanwhile
            train(config, force=force, progress=count)
        except (LandscapeError, KeyboardInterrupt) as failure:
            return said.getvalue(), failure
        finally:
            torch.set_num_threads(threads)  # the next training of this process may ask for no number
    return said.getvalue(), None
