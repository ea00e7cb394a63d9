"""Tasks on a backend of joblib: on one machine or, with dask, on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TypeAlias

from joblib import Parallel, delayed, parallel_config
from joblib.parallel import BACKENDS, EXTERNAL_BACKENDS

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.experiments.one_run import Outcome, Task, work

__all__ = ["Done", "check_backend", "run_on"]

Done: TypeAlias = Callable[[int, Outcome], None]


def check_backend(name: str) -> None:
    """Check that joblib knows a backend.

    Raises:
        ConfigError: It does not; the message suggests the nearest name.
    """
    known = sorted({*BACKENDS, *EXTERNAL_BACKENDS})
    if name not in known:
        close = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"unknown joblib backend {name!r}; {hint}")


def run_on(backend: str, tasks: Sequence[tuple[int, Task]], jobs: int, done: Done) -> None:
    """Run tasks on a backend, and call `done(index, outcome)` here at the end of each.

    Args:
        backend: Name of a backend of joblib, registered ones included. `dask` takes the client of this process, else
            the scheduler in DASK_SCHEDULER_ADDRESS, else workers on this machine.
        tasks: Tasks with an index each.
        jobs: Number of tasks at a time; those of a cluster are as many as it has workers.
        done: Called in this process.

    Raises:
        ConfigError: The backend needs a package that is missing.
        Exception: Whatever the backend raises, for instance if one of its processes was killed.
    """
    with _client(backend, jobs), parallel_config(backend=backend):
        pool = Parallel(n_jobs=jobs, batch_size=1)
        if pool._backend.supports_return_generator:
            pool = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
        for index, outcome in pool(delayed(_numbered)(index, task) for index, task in tasks):
            done(index, outcome)


def _numbered(index: int, task: Task) -> tuple[int, Outcome]:
    """Run a task, and return its outcome with the index."""
    return index, work(task, lambda step, steps, loss: None)


@contextmanager
def _client(backend: str, jobs: int) -> Iterator[None]:
    """Hold a client of dask within the context, if the backend is dask and this process has none."""
    if backend != "dask":
        yield
        return
    try:
        import dask
        from distributed import Client, default_client
    except ImportError:
        raise ConfigError("the backend dask needs a package that is missing: pip install distributed") from None
    try:
        default_client()
    except ValueError:
        here: dict[str, Any] = {} if dask.config.get("scheduler-address", None) else _local(jobs)
        with Client(**here):
            yield
        return
    yield


def _local(jobs: int) -> dict[str, Any]:
    """Return the settings of a cluster on this machine: a process for each job."""
    return {"n_workers": jobs, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
