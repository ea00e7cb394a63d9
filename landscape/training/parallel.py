"""Parallel training of several configs, each in its own process."""

from __future__ import annotations

import _thread
import io
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from ctypes import Array, c_longlong
from multiprocessing import active_children, get_context, parent_process
from threading import Event, Thread, current_thread, main_thread
from types import FrameType
from typing import Final, TypeAlias

import torch

from lossscope.landscape.errors import ConfigError, LandscapeError, TrainingError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.manifest import run_path
from lossscope.landscape.storage.run_folder import check_free
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.training import resolved, train

__all__ = ["train_all"]

# the steps of each training, then the process of each that is under way (else 0); the last entry is 1 if all must stop
Counts: TypeAlias = "Array[c_longlong]"
Ending: TypeAlias = tuple[str, LandscapeError | KeyboardInterrupt | None]  # stderr of a training, and its error
Progress: TypeAlias = Callable[[int, int, str], None]

_POLL_SECONDS: Final = 0.2  # between two reports of progress
_STEP_SECONDS: Final = 1.0  # from an interrupt until a training that has not ended its step is interrupted within it
_GRACE_SECONDS: Final = 30.0  # from an interrupt until trainings that have not ended are terminated

_counts: Counts | None = None  # set in worker processes only


def train_all(
    configs: Sequence[TrainConfig], *, jobs: int, force: bool = False, progress: Progress | None = None
) -> list[Run]:
    """Train with several configs in parallel and return the runs, in the order of the configs.

    Each run is bit for bit the one of `train` with the same number of threads: the processes share only their step
    counts. After a training has failed no other is started; those already running continue to their end. An interrupt,
    SIGTERM, or an exception in `progress`, stops them after their current step, or within an evaluation that takes
    long; what they recorded is kept. After a second one, or half a minute, their processes are terminated. A script
    must call this under `if __name__ == "__main__":`, as every process imports it.

    Args:
        configs: The configs; no two may write the same run.
        jobs: Number of parallel trainings, >= 1. Each loads torch, and uses one core for each of its `threads`.
        force: Replace runs of those names.
        progress: Called several times a second with the steps taken, the total number of steps if none stops early,
            and a text with the number of finished runs.

    Raises:
        ConfigError: `jobs` is below 1, two configs write the same run, or a setting is unknown or out of bounds.
        RunError: As in `train`. An existing run raises before any training starts.
        TrainingError: As in `train`; or a process was killed, which ends the others too.
    """
    if jobs < 1:
        raise ConfigError(f"jobs must be >= 1, got {jobs}")
    complete = [resolved(config) for config in configs]
    paths = [run_path(config.out, config.run_name) for config in complete]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"two configs write the same run {path}: give each its own name")
        check_free(path, force)
    with _sigterm_raises():
        failure = _failure(complete, jobs, force, progress)
    if isinstance(failure, BrokenProcessPool):
        raise TrainingError(
            "the process of a training could not start or was killed, perhaps because memory ran out, and the others "
            "were stopped; recorded rows are kept: use fewer jobs"
        ) from failure
    if failure is not None:
        raise failure
    return [Run.open(path) for path in paths]


def _failure(configs: Sequence[TrainConfig], jobs: int, force: bool, progress: Progress | None) -> BaseException | None:
    """Train all configs and return the error of the first that failed."""
    context = get_context("spawn")  # a forked process may inherit a lock held by torch
    count = len(configs)
    counts: Counts = context.RawArray(c_longlong, 2 * count + 1)
    waiting, under_way, failures = list(enumerate(configs)), set[Future[Ending]](), list[BaseException]()
    steps, ended = sum(config.steps or 0 for config in configs), 0
    others, deadline = set(active_children()), math.inf
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(counts,)) as pool:
        while under_way or (waiting and not failures):
            try:
                while waiting and len(under_way) < jobs and not failures:
                    with _not_interrupted():
                        under_way.add(pool.submit(_trained, *waiting.pop(0), force))
                done, under_way = wait(under_way, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                ended += len(done)
                for output, failure in (future.result() for future in done):
                    _say(output)
                    failures += [] if failure is None else [failure]
                if progress is not None and not counts[-1]:
                    progress(sum(counts[:count]), steps, f"{ended} of {len(configs)} runs")
                if counts[-1] and (not any(counts[count:-1]) or time.monotonic() > deadline):
                    _terminate(others)  # what is left is still loading torch, or does not react
            except BaseException as failure:
                asked = isinstance(failure, KeyboardInterrupt | SystemExit)
                if asked and counts[-1]:
                    _terminate(others)  # asked twice
                elif asked:
                    _say("stopping: what was recorded is kept; interrupt again to stop at once\n")
                failures.append(failure)
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
                counts[2 * count] = True  # see `_stopped_when_told`
        if counts[-1]:
            _terminate(others)
    return failures[0] if failures else None


def _say(text: str) -> None:
    """Write to stderr, if there is one."""
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _terminate(others: Collection[object]) -> None:
    """Terminate the processes of this pool, which are all children of this process but the others."""
    for child in active_children():
        if child not in others:
            child.terminate()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Raise SystemExit on SIGTERM within the context, where the signal would end this process at once.

    The trainings then stop as after an interrupt, and nothing that the processes share stays behind.
    """
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        """Raise SystemExit with the status that a shell gives to a process that a signal ended."""
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _not_interrupted() -> Iterator[None]:
    """Block interrupts; a process started meanwhile blocks them for good, as `counts` tells it to stop."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(counts: Counts) -> None:
    """Initialize a worker process: keep the shared counts, and exit when the parent process is killed."""
    global _counts
    _counts = counts
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent process to end, then exit."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _stopped_when_told(counts: Counts, noticed: Event) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread within the context once all trainings must stop.

    A training that has noticed at the end of a step is left alone. The signal itself is blocked in worker processes.
    """
    over = Event()

    def watch() -> None:
        """Wait for the end of the context or for the stop."""
        while not over.wait(_POLL_SECONDS):
            if counts[len(counts) - 1]:
                if not noticed.wait(_STEP_SECONDS) and not over.is_set():
                    _thread.interrupt_main()
                return

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        noticed.set()
        watcher.join()


def _trained(slot: int, config: TrainConfig, force: bool) -> Ending:
    """Train in a worker process. Return its stderr, kept so that lines do not mix, and its error if it failed."""
    counts, threads, noticed = _counts, torch.get_num_threads(), Event()
    if counts is None:
        raise RuntimeError("_trained must run in a worker process of train_all")
    own = len(counts) // 2 + slot
    counts[own] = os.getpid()

    def count(step: int, steps: int, loss: float) -> None:
        """Publish the step, and stop if all trainings must stop."""
        counts[slot] = step
        if counts[len(counts) - 1]:
            noticed.set()
            raise KeyboardInterrupt

    with redirect_stderr(io.StringIO()) as output:
        try:
            count(0, 0, 0.0)  # a process takes seconds to start, and a stop may have been requested meanwhile
            with _stopped_when_told(counts, noticed):
                train(config, force=force, progress=count)
        except (LandscapeError, KeyboardInterrupt) as failure:
            return output.getvalue(), failure
        finally:
            torch.set_num_threads(threads)  # the next training in this process may not set a number
            counts[own] = 0
    return output.getvalue(), None
