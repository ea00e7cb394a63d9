"""Measuring saved checkpoints after the fact: rows appended to a run that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lossscope.landscape.curvature.catalogue import GROUPS
from lossscope.landscape.curvature.estimate_rows import Rows
from lossscope.landscape.curvature.options import MeasurementTarget, SolverOptions
from lossscope.landscape.curvature.panel import Panel
from lossscope.landscape.errors import RunError
from lossscope.landscape.recording.checkpoints import checkpoints, load_optimizer, load_weights, optimizer_state
from lossscope.landscape.recording.run_metadata import code_version
from lossscope.landscape.reprobe.restored_optimizer import OwnOptimizerError, own_optimizer
from lossscope.landscape.reprobe.result import Absent, Probed
from lossscope.landscape.reprobe.selection import check_budget, select_measures
from lossscope.landscape.reprobe.user_objective import evaluated_once, objective_from
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.setup import job_of
from lossscope.probes.errors import ProbeError

__all__ = ["probe"]

Progress = Callable[[int, int, str], None]  # calls made, calls in all, what comes next

_MINIBATCHES: Final = 32


def probe(
    path: str | Path,
    *,
    at: Sequence[int] | Literal["last", "all"] = "last",
    measures: Sequence[str] | None = None,
    effort: SolverOptions,
    objective: str | None = None,
    progress: Progress | None = None,
) -> Probed:
    """Measure checkpoints of a run and append what was found to its tables.

    The rows of a checkpoint are written together, so a process that is killed loses the checkpoint it is at and no
    other. Nothing is written before the first number is there: a probe that fails leaves the run byte for byte as it
    was. How the run ended stays as it is. Which row counts where one number was measured twice:
    `lossscope.landscape.storage.deduplicate`.

    Args:
        path: The run's folder; any run that is not being recorded.
        at: Steps of checkpoints, the last one, or all.
        measures: Names of measures or of calls; None for what is usual.
        effort: How precise, with which engine.
        objective: `FILE.py:NAME`, a function without arguments that returns the Objective. The checkpoint's weights
            are loaded into its model. None for the workload of the manifest, on the data that the run was recorded on.
        progress: Called before each call and at the end.

    Returns:
        The rows and what is missing.

    Raises:
        ConfigError: A name or a number cannot be used, the budget is too small, or the loss raises something.
        RunError: There is no run or no such checkpoint, it is being recorded, its data cannot be had again, or not one
            of the measures could be taken.
    """
    begun = time.perf_counter()
    chosen = select_measures(measures, effort.engine)
    run = Run.open(path)
    if run.status == "running":
        raise RunError(f"{path} is being recorded: wait until that has ended, then probe it")
    saved = _saved(run, at)
    first = next(iter(saved.values()))
    subject = _rebuilt(run, effort.seed) if objective is None else _own_subject(run, objective, first)
    check_budget(chosen, effort, subject.objective.size)
    _loaded(first, subject)
    if objective is not None:
        evaluated_once(subject.objective, objective, slope=set(chosen) != {"loss"})
    done = _Done(Rows(), [], measures is not None or subject.optimizer is None)
    store = RunStore.extend(path, {"code_version": code_version()})
    try:
        for count, (step, folder) in enumerate(saved.items()):
            _loaded(folder, subject)
            rows = _measured(subject, effort, chosen, step, done, _told(progress, count, len(saved), chosen))
            for table, row in rows.by_table():
                store.append(table, row)
            store.flush()
            done.rows += rows
    finally:
        store.leave()
    found = done.rows
    if not found.probes and not found.densities:
        raise RunError(f"nothing could be measured in {path}: {done.absent[0].why}")
    return Probed(
        Path(path),
        tuple(saved),
        tuple(found.probes),
        tuple(found.densities),
        tuple(done.absent),
        time.perf_counter() - begun,
    )


@dataclass
class _Done:
    """What has been measured so far."""

    rows: Rows
    absent: list[Absent]
    tell: bool  # whether what does not apply is missed: measures were named, or the optimizer is not known


def _saved(run: Run, at: Sequence[int] | str) -> Mapping[int, Path]:
    """The checkpoints asked for, by step."""
    found = checkpoints(run.path)
    if not found:
        raise RunError(
            f"run {run.path} has no checkpoint to measure: `lossscope train` saves them, and a Recorder that is told "
            "how many steps are planned"
        )
    if at == "all":
        return found
    steps = list(found)[-1:] if at == "last" else [int(step) for step in at]
    for step in steps:
        if step not in found:
            raise RunError(f"run {run.path} has no checkpoint at step {step}: there is one at {_listed(found)}")
    return {step: found[step] for step in sorted(set(steps))}


def _listed(steps: Mapping[int, Path]) -> str:
    return ", ".join(map(str, steps))


def _rebuilt(run: Run, seed: int) -> MeasurementTarget:
    """Model, data and optimizer of the manifest's workload, on the data that the run was recorded on."""
    config = run.manifest.get("config")
    if not isinstance(config, dict) or "workload" not in config:
        raise RunError(
            f"run {run.path} was not made by `lossscope train`, so its model and data are not known: give the function "
            "that makes them with --objective FILE.py:NAME"
        )
    job = job_of(TrainConfig.recorded(config))
    recorded, rebuilt = run.manifest.get("data_hash"), job.objective.data_hash
    if recorded != rebuilt:
        raise RunError(
            f"the data of {config['workload']} have the hash {rebuilt[:12]}, the run was recorded on "
            f"{str(recorded)[:12]}: use the versions of its manifest's environment, or --objective FILE.py:NAME"
        )
    return MeasurementTarget(job.objective, job.optimizer, job.minibatches(_MINIBATCHES, seed))


def _own_subject(run: Run, place: str, folder: Path) -> MeasurementTarget:
    """The user's own objective, with the run's optimizer where the checkpoint's state is one that it can have."""
    objective = objective_from(place)
    load_weights(folder, objective.model)  # weights of another network are told before their optimizer
    try:
        return MeasurementTarget(objective, own_optimizer(run.manifest, optimizer_state(folder), objective.model))
    except OwnOptimizerError as error:
        return MeasurementTarget(objective, no_optimizer=f"the run's optimizer cannot be made anew: {error}")


def _loaded(folder: Path, subject: MeasurementTarget) -> None:
    """Put a checkpoint into the model and the optimizer."""
    load_weights(folder, subject.objective.model)
    if subject.optimizer is not None:
        load_optimizer(folder, subject.optimizer)


def _measured(
    subject: MeasurementTarget,
    effort: SolverOptions,
    chosen: Mapping[str, tuple[str, ...]],
    step: int,
    done: _Done,
    tell: Callable[[int, str], None],
) -> Rows:
    """The rows of one checkpoint; what it lacks is noted."""
    panel, rows = Panel(subject, effort), Rows()
    for count, (group, measures) in enumerate(chosen.items()):
        tell(count, group)
        try:
            rows += GROUPS[group].measure(panel, measures)
        except ProbeError as error:
            done.absent.append(Absent(step, measures, str(error)))
    tell(len(chosen), "")
    if done.tell:
        reasons = dict.fromkeys(panel.absent.values())
        done.absent += [Absent(step, tuple(n for n, why in panel.absent.items() if why == one), one) for one in reasons]
    return panel.with_provenance(rows, step) if rows.probes or rows.densities else rows


def _told(
    progress: Progress | None, place: int, places: int, chosen: Mapping[str, tuple[str, ...]]
) -> Callable[[int, str], None]:
    """Progress within one checkpoint as progress of the whole."""

    def tell(count: int, call: str) -> None:
        if progress is not None:
            progress(place * len(chosen) + count, places * len(chosen), call)

    return tell
