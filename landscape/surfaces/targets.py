"""Points that are drawn: checkpoints of runs and files of weights, as parameters of one loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.recording.checkpoints import checkpoints, load_weights
from lossscope.landscape.reprobe.rebuilt_run import rebuilt_job, requested_checkpoints
from lossscope.landscape.reprobe.user_objective import objective_from
from lossscope.landscape.reprobe.weights_file import ENDINGS, fit_weights, read_weights
from lossscope.landscape.run import Run
from lossscope.probes.objective.objective import Objective

__all__ = ["Point", "Targets", "data_notes", "history_of", "last_point", "targets"]


@dataclass(frozen=True)
class Point:
    """Parameters with their buffers: a checkpoint, or a file of weights."""

    name: str
    source: Path  # folder of a checkpoint, or file of weights
    run: Run | None = None
    step: int | None = None
    weights: Mapping[str, Tensor] | None = None  # weights that are in memory; the source is then a name only

    def load(self, objective: Objective) -> str:
        """Load the weights and buffers into the model of a loss; return a sentence about prefixes, or nothing.

        Raises:
            ConfigError: The weights do not fit.
            RunError: The checkpoint is damaged, or does not fit.
        """
        if self.weights is not None:
            return fit_weights(self.weights, objective.model, self.name)
        if self.run is None:
            return fit_weights(read_weights(self.source), objective.model, self.source)
        return load_weights(self.source, objective.model) or ""


@dataclass(frozen=True)
class Targets:
    """Points and the loss that is drawn at them."""

    points: tuple[Point, ...]
    objective: Objective
    remake: Callable[[int], Objective] | None = None  # the loss at one of the points, in another process


def targets(paths: Sequence[str], objective: str | None, step: int | None, *, history: bool = False) -> Targets:
    """Return the points that paths name.

    Args:
        paths: Runs, or files of weights.
        objective: `FILE.py:NAME` of a function that returns the loss; None for the workload of the first run.
        step: Step of the checkpoint of each run; None for the last one.
        history: True for all checkpoints of a run, in place of one.

    Raises:
        ConfigError: A path is neither, or files of weights are given without an objective.
        RunError: A run has no such checkpoint, or cannot be rebuilt.
    """
    points: list[Point] = []
    for one in paths:
        place = Path(one)
        if place.is_dir():
            points += _of_run(Run.open(place), step, history)
        elif place.suffix in ENDINGS or place.is_file():
            points.append(Point(place.name, place))
        else:
            raise ConfigError(f"{one} is neither a run nor a file of weights ({', '.join(ENDINGS)})")
    if objective is not None:
        loss = objective_from(objective)
    else:
        runs = [point.run for point in points if point.run is not None]
        if not runs:
            raise ConfigError("weights alone have no loss: give one by --objective FILE.py:NAME")
        loss = rebuilt_job(runs[0], "give its loss by --objective FILE.py:NAME").objective
    return Targets(_distinct(points), loss, partial(_objective_at, tuple(paths), objective, step, history))


def _objective_at(
    paths: Sequence[str], objective: str | None, step: int | None, history: bool, place: int
) -> Objective:
    """Return the loss with the weights and buffers of one of the points that paths name."""
    found = targets(paths, objective, step, history=history)
    found.points[place].load(found.objective)
    return found.objective


def last_point(run: Run, step: int | None) -> Point:
    """Return the checkpoint of a run at a step, or the last one if it has none there."""
    saved = checkpoints(run.path)
    return _of_run(run, step if step in saved else None, history=False)[0]


def history_of(run: Run) -> tuple[Point, ...]:
    """Return all checkpoints of a run in the order of training."""
    return tuple(_of_run(run, None, history=True))


def data_notes(points: Iterable[Point], objective: Objective) -> tuple[str, ...]:
    """Return a sentence for each run that was recorded on other data than those of a loss.

    Args:
        points: The points.
        objective: The loss.
    """
    notes = dict[str, None]()
    for run in (point.run for point in points if point.run is not None):
        recorded = run.manifest.get("data_hash")
        if isinstance(recorded, str) and recorded != objective.data_hash:
            notes[
                f"Run {run.name} was recorded on other data ({recorded[:8]}) than those of the loss that is drawn "
                f"({objective.data_hash[:8]}): its losses here are not those of its training."
            ] = None
    return tuple(notes)


def _of_run(run: Run, step: int | None, history: bool) -> list[Point]:
    """Return the checkpoints of a run: all of them, that of a step, or the last one."""
    saved = sorted(checkpoints(run.path))
    wanted = saved if history else [step] if step is not None else saved[-1:]
    found = requested_checkpoints(run, wanted)
    return [Point(f"{run.path.name} at step {at}", folder, run, at) for at, folder in found.items()]


def _distinct(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points with names that differ: with their folders where they would be the same."""
    names = [point.name for point in points]
    return tuple(replace(one, name=str(one.source)) if names.count(one.name) > 1 else one for one in points)
