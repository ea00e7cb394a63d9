"""Measurement of saved checkpoints: rows appended to a run that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from lossscope.landscape.errors import RunError
from lossscope.landscape.measures.estimate_rows import Rows
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.recording.checkpoints import (
    checkpoints,
    has_optimizer,
    load_optimizer,
    load_weights,
    optimizer_state,
)
from lossscope.landscape.recording.run_metadata import code_version
from lossscope.landscape.reprobe.measured_rows import measured_rows
from lossscope.landscape.reprobe.rebuilt_run import rebuilt_job, requested_checkpoints
from lossscope.landscape.reprobe.restored_optimizer import OwnOptimizerError, own_optimizer
from lossscope.landscape.reprobe.result import Absent, Probed
from lossscope.landscape.reprobe.selection import check_budget, select_measures
from lossscope.landscape.reprobe.user_objective import errors_of_loss, evaluated_once, objective_from
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore

__all__ = ["probe"]

Progress = Callable[[int, int, str], None]  # groups measured, groups in all, name of the next group

_MINIBATCHES: Final = 32
_REMEDY: Final = "give a function that returns them as an Objective with --objective FILE.py:NAME"
_NO_STATE: Final = "the checkpoint holds weights only, without the state of the optimizer"


def probe(
    path: str | Path,
    *,
    at: Sequence[int] | Literal["last", "all"] = "last",
    measures: Sequence[str] | None = None,
    effort: SolverOptions,
    objective: str | None = None,
    progress: Progress | None = None,
) -> Probed:
    """Measure checkpoints of a run and append the rows to its tables.

    The rows of a checkpoint are written together, so a killed process loses only the checkpoint it is at. Nothing is
    written before the first value is measured: a probe that fails leaves the run unchanged byte for byte. The status of
    the run stays as it is. `lossscope.landscape.storage.deduplicate` decides which row counts if a value was measured
    twice.

    Args:
        path: Folder of a run that is not being recorded.
        at: Steps of checkpoints, the last one, or all.
        measures: Names of measures or of groups; None for the usual groups.
        effort: Tolerances, budget, seed and engine.
        objective: `FILE.py:NAME`, a function without arguments that returns the Objective. The checkpoint's weights
            are loaded into its model. None for the workload of the manifest, on the data that the run was recorded on.
        progress: Called before each group of measures and at the end.

    Returns:
        The rows and the missing measures.

    Raises:
        ConfigError: A name or a number is invalid, the budget is too small, or the loss raises an error.
        RunError: The run or checkpoint does not exist, the run is being recorded, its data cannot be rebuilt, or no
            measure could be taken.
    """
    begun = time.perf_counter()
    chosen = select_measures(measures, effort.engine)
    run = Run.open(path)
    if run.status == "running":
        raise RunError(f"{path} is being recorded: wait until that has ended, then probe it")
    saved = _requested_checkpoints(run, at)
    whole, notes = _prepared(run, list(saved.values()), objective, chosen, effort)
    done, absent = Rows(), list[Absent]()
    store = RunStore.extend(path, {"code_version": code_version()})
    try:
        for count, (step, folder) in enumerate(saved.items()):
            target, _ = _loaded(folder, whole)
            with errors_of_loss(objective) if objective is not None else nullcontext():
                tell = _reporter(progress, count, len(saved), chosen)
                named = measures is not None or target.optimizer is None
                rows, missing = measured_rows(target, effort, chosen, step, tell, named=named)
            for table, row in rows.by_table():
                store.append(table, row)
            store.flush()
            done += rows
            absent += missing
    finally:
        store.leave()
    if not done:
        raise RunError(f"nothing could be measured in {path}: {absent[0].why}")
    return Probed(
        Path(path),
        tuple(saved),
        tuple(done.probes),
        tuple(done.densities),
        tuple(done.curves),
        tuple(absent),
        time.perf_counter() - begun,
        notes,
    )


def _requested_checkpoints(run: Run, at: Sequence[int] | str) -> Mapping[int, Path]:
    """Return the requested checkpoints, by step."""
    found = list(checkpoints(run.path))
    if at == "all":
        return requested_checkpoints(run, found)
    return requested_checkpoints(run, found[-1:] if at == "last" else [int(step) for step in at])


def _prepared(
    run: Run,
    folders: Sequence[Path],
    objective: str | None,
    chosen: Mapping[str, tuple[str, ...]],
    effort: SolverOptions,
) -> tuple[MeasurementTarget, tuple[str, ...]]:
    """Return what is measured, checked at the first checkpoint, and sentences about it."""
    target = _rebuild(run, effort.seed) if objective is None else _own_target(run, objective, folders)
    check_budget(chosen, effort, target.objective.size)
    _, renamed = _loaded(folders[0], target)
    if objective is not None:
        evaluated_once(target.objective, objective, slope=set(chosen) != {"loss"})
    return target, tuple(note for note in (renamed, _of_fewer(run, target.objective.size)) if note is not None)


def _rebuild(run: Run, seed: int) -> MeasurementTarget:
    """Rebuild model, data and optimizer of the manifest's workload, on the data that the run was recorded on."""
    job = rebuilt_job(run, _REMEDY)
    minibatches, train, test = job.minibatches(_MINIBATCHES, seed), job.training_loss(), job.test_loss()
    return MeasurementTarget(job.objective, job.optimizer, minibatches, train=train, test=test)


def _own_target(run: Run, place: str, folders: Sequence[Path]) -> MeasurementTarget:
    """Return the user's objective, with the run's optimizer if it can be rebuilt from a checkpoint."""
    objective = objective_from(place)
    load_weights(folders[0], objective.model)  # weights of another network are reported before their optimizer
    full = next(filter(has_optimizer, folders), None)
    if full is None:
        return MeasurementTarget(objective, no_optimizer=_NO_STATE)
    try:
        return MeasurementTarget(objective, own_optimizer(run.manifest, optimizer_state(full), objective.model))
    except OwnOptimizerError as error:
        return MeasurementTarget(objective, no_optimizer=f"the run's optimizer cannot be rebuilt: {error}")


def _loaded(folder: Path, target: MeasurementTarget) -> tuple[MeasurementTarget, str | None]:
    """Load a checkpoint into the model and the optimizer.

    Returns:
        What is measured, without the optimizer if the checkpoint lacks its state; and a sentence if names have a prefix
        on one side.
    """
    renamed = load_weights(folder, target.objective.model)
    if target.optimizer is None:
        return target, renamed
    if not has_optimizer(folder):
        return replace(target, optimizer=None, no_optimizer=_NO_STATE), renamed
    load_optimizer(folder, target.optimizer)
    return target, renamed


def _of_fewer(run: Run, size: int) -> str | None:
    """Return a sentence if the measured parameters are not as many as the recorded rows are of."""
    recorded = run.probes["parameters"].dropna()
    trained = int(recorded.iloc[0]) if len(recorded) else (run.manifest.get("model") or {}).get("parameters")
    if trained is None or trained == size:
        return None
    return (
        f"these rows are of {size} parameters and the recorded ones of {trained}, so reports show them in no curve "
        "together: freeze the same parameters as in training for comparable numbers"
    )


def _reporter(
    progress: Progress | None, place: int, places: int, chosen: Mapping[str, tuple[str, ...]]
) -> Callable[[int, str], None]:
    """Return a function that reports progress within one checkpoint as overall progress."""

    def tell(count: int, call: str) -> None:
        if progress is not None:
            progress(place * len(chosen) + count, places * len(chosen), call)

    return tell
