"""Parallel training: tasks in worker processes, one at a time in each, that can be interrupted."""

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
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from ctypes import Array, c_longlong
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from threading import Event, Thread, current_thread, main_thread
from types import FrameType
from typing import Any, Final, TypeAlias

import torch

from lossscope.landscape.errors import ConfigError, LandscapeError, TrainingError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.manifest import run_path
from lossscope.landscape.storage.run_folder import check_free
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.training import resolved, train

__all__ = ["Count", "Ending", "Progress", "run_tasks", "sigterm_raises", "train_all"]

# the steps of each training, then the process of each that is under way (else 0); the last entry is 1 if all must stop
Counts: TypeAlias = "Array[c_longlong]"
Progress: TypeAlias = Callable[[int, int, str], None]
Count: TypeAlias = Callable[[int, int, float], None]  # step, steps, loss

_POLL_SECONDS: Final = 0.2  # between two reports of progress
_STEP_SECONDS: Final = 1.0  # from an interrupt until a training that has not ended its step is interrupted within it
_GRACE_SECONDS: Final = 30.0  # from an interrupt until trainings that have not ended are terminated

_counts: Counts | None = None  # set in worker processes only


@dataclass(frozen=True)
class Ending:
    """End of a task: what it returned, or the error by which it ended; and what it wrote to stderr."""

    value: Any = None
    error: LandscapeError | KeyboardInterrupt | BrokenProcessPool | None = None
    output: str = ""


Done: TypeAlias = Callable[[int, Ending], bool]  # index of the task -> whether others may begin


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
    failures: list[BaseException] = []

    def done(slot: int, ending: Ending) -> bool:
        """Keep the error of a training; stop the others if its process was killed."""
        if isinstance(ending.error, BrokenProcessPool):
            raise ending.error
        failures.extend([] if ending.error is None else [ending.error])
        return not failures

    tasks, steps = [(config, force) for config in complete], [config.steps or 0 for config in complete]
    with sigterm_raises():
        stop = run_tasks(_trained, tasks, steps=steps, jobs=jobs, done=done, progress=progress)
    failure = failures[0] if failures else stop
    if isinstance(failure, BrokenProcessPool):
        raise TrainingError(
            "the process of a training could not start or was killed, perhaps because memory ran out, and the others "
            "were stopped; recorded rows are kept: use fewer jobs"
        ) from failure
    if failure is not None:
        raise failure
    return [Run.open(path) for path in paths]


def _trained(task: tuple[TrainConfig, bool], count: Count) -> None:
    """Train in a worker process."""
    train(task[0], force=task[1], progress=count)


def run_tasks(
    work: Callable[[Any, Count], Any],
    tasks: Sequence[Any],
    *,
    steps: Sequence[int],
    jobs: int,
    done: Done,
    progress: Progress | None = None,
    quiet: bool = False,
) -> BaseException | None:
    """Run tasks in processes of their own that are used again, until all have ended or one says to begin no other.

    A process that is killed ends its own task only; another takes its place. Interrupts are those of `train_all`.

    Args:
        work: An importable function, called as `work(task, count)` in a process; it calls `count(step, steps, loss)`
            after every step. What it raises, other than LandscapeError, is raised here.
        tasks: The tasks, which can be pickled.
        steps: Number of steps of each task, for `progress`.
        jobs: Number of parallel processes, >= 1.
        done: Called here as `done(index, ending)` at the end of each task; returns False to begin no other one. If
            it raises, the others are stopped.
        progress: As in `train_all`.
        quiet: Do not show what the tasks write to stderr.

    Returns:
        The interrupt, or the exception of `done` or `progress`, that stopped the tasks; None if none did.
    """
    context = get_context("spawn")  # a forked process may inherit a lock held by torch
    count, total, ended = len(tasks), sum(steps), 0
    counts: Counts = context.RawArray(c_longlong, 2 * count + 1)
    waiting, idle = list(enumerate(tasks)), list[ProcessPoolExecutor]()
    under_way = dict[Future[Any], tuple[int, ProcessPoolExecutor]]()
    others, deadline, failure = set(active_children()), math.inf, None
    with ExitStack() as pools:  # of one process each, so that a killed one breaks no other's
        while under_way or waiting:
            try:
                while waiting and len(under_way) < jobs and failure is None:
                    with _not_interrupted(), suppress(BrokenProcessPool):  # an idle process was killed: take another
                        begin = partial(ProcessPoolExecutor, 1, context, initializer=_begin, initargs=(counts,))
                        pool = idle.pop() if idle else pools.enter_context(begin())
                        under_way[pool.submit(_worked, waiting[0][0], work, waiting[0][1])] = waiting[0][0], pool
                        waiting.pop(0)
                for future in wait(under_way, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                    slot, pool = under_way.pop(future)
                    ended, counts[count + slot] = ended + 1, 0
                    ending = _ending(future)
                    _say("" if quiet else ending.output)
                    if not isinstance(ending.error, BrokenProcessPool):
                        idle.append(pool)
                    if failure is None and not done(slot, ending):
                        waiting.clear()
                if progress is not None and not counts[-1]:
                    progress(sum(counts[:count]), total, f"{ended} of {count} runs")
                if counts[-1] and (not any(counts[count:-1]) or time.monotonic() > deadline):
                    _terminate(others)  # what is left is still loading torch, or does not react
            except BaseException as error:
                asked = isinstance(error, KeyboardInterrupt | SystemExit)
                if asked and counts[-1]:
                    _terminate(others)  # asked twice
                elif asked:
                    _say("stopping: what was recorded is kept; interrupt again to stop at once\n")
                failure = error if failure is None else failure
                waiting.clear()
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
                counts[2 * count] = True  # see `_stopped_when_told`
        if counts[-1]:
            _terminate(others)
    return failure


def _ending(future: Future[Ending]) -> Ending:
    """Return the ending of a task; that of a killed process has the error of its pool."""
    try:
        return future.result()
    except BrokenProcessPool as killed:
        return Ending(error=killed)


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
def sigterm_raises() -> Iterator[None]:
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


def _worked(slot: int, work: Callable[[Any, Count], Any], task: Any) -> Ending:
    """Work on a task in a worker process. Its stderr is kept, so that lines of several tasks do not mix."""
    counts, threads, noticed = _counts, torch.get_num_threads(), Event()
    if counts is None:
        raise RuntimeError("_worked must run in a worker process of run_tasks")
    own = len(counts) // 2 + slot
    counts[own] = os.getpid()

    def count(step: int, steps: int, loss: float) -> None:
        """Publish the step, and stop if all tasks must stop."""
        counts[slot] = step
        if counts[len(counts) - 1]:
            noticed.set()
            raise KeyboardInterrupt

    value, error = None, None
    with redirect_stderr(io.StringIO()) as output:
        try:
            count(0, 0, 0.0)  # a process takes seconds to start, and a stop may have been requested meanwhile
            with _stopped_when_told(counts, noticed):
                value = work(task, count)
        except (LandscapeError, KeyboardInterrupt) as failure:
            error = failure
        finally:
            torch.set_num_threads(threads)  # the next training in this process may not set a number
            counts[own] = 0
    return Ending(value, error, output.getvalue())
