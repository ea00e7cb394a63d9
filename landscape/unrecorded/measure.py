"""Measurement of checkpoints that nobody recorded: curvature and flatness of a loss, and spectra of the matrices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.reprobe.result import Absent
from lossscope.landscape.unrecorded.matrix_rows import MATRICES, matrix_rows
from lossscope.landscape.unrecorded.measured_run import Finished, MeasuredRun, environment
from lossscope.landscape.unrecorded.sources import Checkpoint, Found, find_checkpoints
from lossscope.landscape.unrecorded.stored_tensors import StoredTensor, stored_tensors

if TYPE_CHECKING:
    from lossscope.landscape.measures.options import SolverOptions
    from lossscope.landscape.unrecorded.loss import CheckpointLoss
    from lossscope.probes.objective.objective import Objective

__all__ = ["Measured", "Plan", "carry_out", "measure", "planned"]

Progress = Callable[[int, int, str], None]  # parts done, parts in all, name of the next part

_LISTED: Final = 3


@dataclass(frozen=True)
class Measured:
    """Checkpoints that were measured into a run."""

    run: Path
    steps: tuple[int, ...]  # of the checkpoints measured by this call
    before: tuple[int, ...]  # of those that were finished before
    rows: int  # rows written, of all tables
    absent: tuple[Absent, ...]
    seconds: float
    notes: tuple[str, ...]  # sentences that a reader of the numbers needs


@dataclass(frozen=True)
class Plan:
    """Checkpoints and what is left to measure at each of them.

    Attributes:
        checkpoints: All checkpoints, ascending.
        left: Measures that are not finished, by step; steps where all are finished are not among them.
        loss: The loss; None for matrices alone.
        run: The run that is written into.
        notes: Sentences about what was left out.
    """

    checkpoints: tuple[Checkpoint, ...]
    left: Mapping[int, tuple[str, ...]]
    loss: CheckpointLoss | None
    run: MeasuredRun
    notes: tuple[str, ...]

    @property
    def waiting(self) -> tuple[Checkpoint, ...]:
        """Checkpoints at which something is left to measure."""
        return tuple(one for one in self.checkpoints if one.step in self.left)


def measure(
    checkpoints: str | Path | Iterable[str | Path],
    *,
    into: str | Path,
    objective: Objective | str | None = None,
    measures: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    effort: SolverOptions | None = None,
    matrices: bool = True,
    progress: Progress | None = None,
) -> Measured:
    """Measure checkpoints that nobody recorded, and write a run that every report reads.

    Without an objective the singular values, entropies and norms of the matrices are measured; safetensors are then
    read without torch. With one, also curvature and flatness at each checkpoint, as `probe` does. A second call with
    the same settings continues: finished checkpoints are left out.

    Args:
        checkpoints: Files of weights (.pt, .pth, .bin, .ckpt, .safetensors, an index of shards), folders of Hugging
            Face, folders of any of them, or a recorded run.
        into: Folder of the run.
        objective: The loss, or `FILE.py:NAME` of a function that returns it. The weights of each checkpoint are loaded
            into its model, which keeps the last ones.
        measures: Names of measures or of groups; None for the usual groups.
        steps: Steps of the checkpoints in their order; None for those in their names.
        effort: Tolerances, budget, seed and engine. Default: error bounds of 1 %, 200 products.
        matrices: False for no singular values and norms.
        progress: Called before each part and at the end.

    Returns:
        What was measured, and what is missing.

    Raises:
        ConfigError: A checkpoint cannot be read or does not fit, a name or a number is invalid, or the loss raises.
        RunError: The run cannot be written, or holds something else.

    Example:
        >>> import tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> torch.save({"weight": torch.eye(3)}, f"{folder}/step_10.pt")
        >>> measure(folder, into=f"{folder}/run").steps
        (10,)
    """
    loss = _loss(objective, measures, effort)
    paths = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    return carry_out(planned(find_checkpoints(paths, steps), loss, into, matrices=matrices), progress)


def planned(found: Found, loss: CheckpointLoss | None, into: str | Path, *, matrices: bool) -> Plan:
    """Return what is left to measure, after checking the run and the first checkpoint.

    Args:
        found: The checkpoints.
        loss: The loss; None for matrices alone.
        into: Folder of the run.
        matrices: False for no singular values and norms.

    Raises:
        ConfigError: Nothing is to be measured, or the run has other settings or other files at the same steps.
        RunError: The folder of the run holds something else.
    """
    wanted = ((MATRICES,) if matrices else ()) + (loss.names if loss is not None else ())
    if not wanted:
        raise ConfigError("nothing is left to measure: give a loss by --objective, or leave --no-matrices out")
    run = MeasuredRun(into, {"objective": None} if loss is None else loss.settings())
    left = {one.step: run.left(one, wanted) for one in found.checkpoints}
    return Plan(found.checkpoints, {s: names for s, names in left.items() if names}, loss, run, found.notes)


def carry_out(plan: Plan, progress: Progress | None = None) -> Measured:
    """Measure what is left, one checkpoint after another, and write each when it is finished.

    Nothing is written before the first checkpoint is measured, and an interruption loses only the one it is at.

    Args:
        plan: From `planned`.
        progress: Called before each part and at the end.

    Raises:
        ConfigError: A checkpoint cannot be read or does not fit, or the loss raises.
        RunError: The run cannot be written, or nothing could be measured at a checkpoint.
    """
    begun, done = time.perf_counter(), _Progress(dict.fromkeys(plan.notes))
    waiting, steps = plan.waiting, sorted(plan.left)
    try:
        for place, checkpoint in enumerate(waiting):
            tell = _reporter(progress, place, len(waiting))
            _measure_one(plan, checkpoint, steps, done, tell)
    except BaseException as error:
        plan.run.end(_reason(error))
        raise
    plan.run.end(None)
    before = tuple(one.step for one in plan.checkpoints if one.step not in plan.left)
    return Measured(
        plan.run.path,
        tuple(steps),
        before,
        done.rows,
        tuple(done.absent),
        time.perf_counter() - begun,
        tuple(f"{note[0].upper()}{note[1:]}." for note in done.notes),
    )


@dataclass
class _Progress:
    """Numbers and reasons so far."""

    notes: dict[str, None]
    rows: int = 0
    absent: list[Absent] = field(default_factory=list)


def _loss(
    objective: Objective | str | None, measures: Sequence[str] | None, effort: SolverOptions | None
) -> CheckpointLoss | None:
    """Return the loss; None if there is no objective, so that torch is not loaded."""
    if objective is None:
        if measures is not None:
            raise ConfigError(
                f"{', '.join(measures[:_LISTED])} cannot be measured without a loss: give an objective, or "
                "leave measures out for the matrices alone"
            )
        return None
    from lossscope.landscape.unrecorded.loss import checkpoint_loss

    return checkpoint_loss(objective, measures, effort)


def _measure_one(
    plan: Plan, checkpoint: Checkpoint, steps: Sequence[int], done: _Progress, tell: Callable[[int, int, str], None]
) -> None:
    """Measure one checkpoint, and write its rows."""
    step, wanted, loss = checkpoint.step, plan.left[checkpoint.step], plan.loss
    parts = int(MATRICES in wanted) + (0 if loss is None else len(loss.chosen))
    rows: list[tuple[str, Mapping[str, Any]]] = []
    absent: list[Absent] = []
    if loss is None:
        tensors, notes = stored_tensors(checkpoint)
        _require_same(plan.run, checkpoint, tensors)
    else:
        notes, tensors = [loss.load(checkpoint)], loss.parameters()
        if plan.run.tensors() is None:
            loss.try_once()
        measured, missing = loss.rows(step, wanted, lambda count, group: tell(count, parts, group))
        rows += measured.by_table()
        absent += missing
    if MATRICES in wanted:
        of_matrices, why = matrix_rows(tensors, step, lambda name: tell(parts - 1, parts, name))
        rows += of_matrices
        absent += [Absent(step, (f"spectrum of {name}",), reason) for name, reason in why.items()]
    if not rows and plan.run.tensors() is None:
        raise RunError(f"nothing could be measured in {checkpoint.path}: {absent[0].why}")
    plan.run.begin(_facts(plan, tensors), steps)
    plan.run.add(Finished(step, str(checkpoint.path), checkpoint.checksum(), wanted), rows, absent)
    tell(parts, parts, "")
    done.notes |= dict.fromkeys(note for note in notes if note)
    done.rows += len(rows)
    done.absent += absent


def _require_same(run: MeasuredRun, checkpoint: Checkpoint, tensors: Sequence[StoredTensor]) -> None:
    """Refuse a checkpoint whose parameters are not those of the others of the run."""
    others = run.tensors()
    if others is None:
        return
    known = {str(one["name"]): tuple(one["shape"]) for one in others}
    mine = {one["name"]: tuple(one["shape"]) for one in _described(tensors)}
    differ = [name for name in [*known, *mine] if known.get(name) != mine.get(name)]
    if differ:
        name = differ[0]
        there = (
            "is not in the others" if name not in known else "is missing" if name not in mine else "has another shape"
        )
        raise ConfigError(
            f"{checkpoint.path} is of another network than the checkpoints before it: {name} {there}; measure it "
            "into a run of its own by --into"
        )


def _described(tensors: Iterable[StoredTensor]) -> list[dict[str, Any]]:
    """Return name, shape and track of the parameters for the manifest."""
    return [
        {"name": one.name, "shape": list(one.shape), "track": "matrix" if len(one.shape) >= 2 else "vector"}
        for one in tensors
        if one.is_floating and one.is_parameter
    ]


def _facts(plan: Plan, tensors: Sequence[StoredTensor]) -> dict[str, Any]:
    """Return the facts of the manifest of a new run."""
    described = _described(tensors)
    kinds = dict.fromkeys(one.dtype for one in tensors if one.is_floating and one.is_parameter)
    own: dict[str, Any] = {"environment": environment()} if plan.loss is None else plan.loss.facts()
    return {
        "arm": plan.run.path.name,
        "optimizer": None,
        "model": {"parameters": sum(math.prod(one["shape"]) for one in described), "tensors": described},
        "config": plan.run.settings,
        "seeds": {},
        "code_version": environment()["lossscope"],
        "dtype": ", ".join(kinds),
        **own,
    }


def _reporter(progress: Progress | None, place: int, places: int) -> Callable[[int, int, str], None]:
    """Return a function that reports parts of one checkpoint as parts of all."""

    def tell(count: int, parts: int, name: str) -> None:
        if progress is not None:
            progress(place * parts + count, places * parts, name)

    return tell


def _reason(error: BaseException) -> str:
    """Return how an error ended the measurement."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return (str(error).splitlines() or [type(error).__name__])[0][:500]
