"""Loss between two saved points: its expansion at the first, and its values on the straight path."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from torch import Tensor

from lossscope.landscape.analysis.diff import WeightDifference
from lossscope.landscape.reprobe.rebuilt_run import rebuilt_job
from lossscope.landscape.reprobe.user_objective import errors_of_loss, objective_from
from lossscope.landscape.run import Run
from lossscope.landscape.surfaces.difference import Difference
from lossscope.landscape.surfaces.loss_change import loss_change
from lossscope.landscape.surfaces.path import path
from lossscope.landscape.surfaces.pictures import Path
from lossscope.landscape.surfaces.sides import Side
from lossscope.landscape.surfaces.targets import Point
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective

__all__ = ["LossBetween"]

_ALIKE = 1e-6  # relative difference of two losses that is rounding


@dataclass(frozen=True)
class LossBetween:
    """A loss that is evaluated between saved points.

    Attributes:
        objective: The loss.
        place: Its name in messages.
        points: Number of losses on each path.
        unit: Unit of the loss.
    """

    objective: Objective
    place: str
    points: int
    unit: str = ""

    @classmethod
    def of(cls, objective: str | Objective, points: int) -> LossBetween:
        """Return that of a loss, or of `FILE.py:NAME`.

        Raises:
            ConfigError: There is no such loss.
        """
        if isinstance(objective, str):
            return cls(objective_from(objective), objective, points)
        return cls(objective, "objective", points)

    @classmethod
    def of_run(cls, run: Run, points: int) -> LossBetween:
        """Return that of a run of `lossscope train`.

        Raises:
            RunError: It cannot be built again.
        """
        job = rebuilt_job(run, "give its loss by --objective FILE.py:NAME")
        return cls(job.objective, f"the loss of {run.name}", points, run.loss_unit)

    @contextmanager
    def weights_kept(self) -> Iterator[None]:
        """Restore the weights and buffers of the model of the loss after this context."""
        kept = {name: tensor.clone() for name, tensor in self.objective.model.state_dict().items()}
        try:
            yield
        finally:
            self.objective.model.load_state_dict(kept)

    def path_of(self, first: Side, second: Side) -> Path | None:
        """Return the loss on the straight path, with the buffers of the first point; None if it is not finite there.

        Raises:
            ConfigError: The weights do not fit.
            RunError: A checkpoint is damaged, or does not fit.
        """
        start, end, _, _ = self._ends(first, second)
        with errors_of_loss(self.place), suppress(ProbeError):
            return path(self.objective, start, end, points=self.points)
        return None

    def difference(self, weights: WeightDifference, first: Side, second: Side) -> Difference:
        """Return the difference with the loss on the path and its expansion at the first point.

        Raises:
            ConfigError: The weights do not fit.
            RunError: A checkpoint is damaged, or does not fit.
        """
        start, end, own, notes = self._ends(first, second)
        missing = {}
        found = Difference(weights, unit=self.unit, samples=self.objective.samples, data=self.objective.data_hash)
        if bool((start == end).all()):
            return replace(found, missing={"loss": "A and B differ in no trainable parameter: the loss has no path"})
        line, change = None, None
        with errors_of_loss(self.place):
            try:
                line = path(self.objective, start, end, points=self.points)
                change = loss_change(self.objective, start, end, own)
            except ProbeError as error:
                missing["loss" if line is None else "loss change by module"] = str(error)
        if change is not None and abs(own - change.loss_b) > _ALIKE * abs(own):
            notes.append(
                "B has other buffers or frozen parameters than A: the path and the expansion keep those of A, so the "
                "loss at the end of the path is not the loss of B."
            )
        if any(_other_data(side.run, self.objective.data_hash) for side in (first, second)):
            notes.append("A or B was trained on other data than those of the loss here.")
        return replace(found, change=change, path=line, missing=missing, notes=tuple(notes))

    def _ends(self, first: Side, second: Side) -> tuple[Tensor, Tensor, float, list[str]]:
        """Return the parameters of both points, the loss of the second, and notes; the model is left at the first."""
        notes = dict[str, None]()
        notes[_loaded(second, self.objective)] = None
        end, own = self.objective.parameters(), math.nan
        with errors_of_loss(self.place, "it is called as loss_fn(model, batch)"):
            try:
                own = self.objective.value_at(end)
            except ProbeError:  # not repeatable or not finite: what follows says so
                own = math.nan
        notes[_loaded(first, self.objective)] = None
        return self.objective.parameters(), end, own, [f"{one[0].upper()}{one[1:]}." for one in notes if one]


def _loaded(side: Side, objective: Objective) -> str:
    """Load a point into the model of a loss; return a sentence about prefixes, or nothing."""
    return Point(side.name, side.source, side.run, side.step).load(objective)


def _other_data(run: Run | None, data: str) -> bool:
    """Return True if a run recorded another hash of its data."""
    return run is not None and isinstance(run.manifest.get("data_hash"), str) and run.manifest["data_hash"] != data
