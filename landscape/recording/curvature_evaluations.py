"""Curvature evaluations of a recorded training: the scheduled groups of measures on the fixed data, as rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.measures.catalogue import recorded_groups
from lossscope.landscape.measures.estimate_rows import Rows
from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.measures.measure_group import Evaluation, MeasureGroup
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.measures.step_measures import ByParameter, RecordedStep, flat_vector
from lossscope.landscape.recording.cadence import Preset
from lossscope.landscape.recording.faults import Faults
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.objective.fixed_loss import batch_norm_note
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.step_quality import LayerRemainders, layer_remainders

__all__ = ["CurvatureEvaluations"]


class CurvatureEvaluations:
    """Measure curvature at the present parameters, each evaluation starting from the top eigenvectors of the last.

    The catalogue declares which measures are due (`MeasureGroup.recorded`). A short evaluation takes the loss,
    `lambda_max` and both curvatures along the step taken. A long one takes the whole panel, and the error of the
    linear and quadratic models along the step. If the preset tracks, `lambda_max` is tracked from each evaluation to
    the next for a few products; otherwise it is read off the panel's Krylov space.

    Args:
        objective: The loss on fixed data.
        preset: Tolerances, budget and number of eigenvalues.
        optimizer: The optimizer, for its metric and its stability thresholds.
        seed: Seed of all random vectors.
        faults: Collects the groups that could not be measured, with the reason.
    """

    def __init__(
        self,
        objective: Objective,
        preset: Preset,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        faults: Faults | None = None,
    ) -> None:
        self.objective = objective
        self._faults = faults or Faults("curvature")
        self._preset = preset
        self._target = MeasurementTarget(objective, optimizer)
        self._options = SolverOptions(preset.rel, preset.trace_rel, preset.products, seed)
        self._tracker = EigenTracker(preset.rel, max_products=preset.products, seed=seed) if preset.tracked else None
        self._near: dict[str, Tensor] = {}

    @property
    def missing(self) -> list[Row]:
        """Groups that could not be measured, with step and reason."""
        return self._faults.missing

    def rows(
        self,
        step: int,
        before: ByParameter,
        displacement: ByParameter,
        *,
        long: bool = True,
        groups: Sequence[Mapping[str, Any]] | None = None,
    ) -> Rows:
        """Return the rows of an evaluation after `step` steps.

        A group that cannot be measured (weights that are not finite, memory that runs out, an exception of the loss
        function) is missing and stops no training.

        Args:
            step: Steps taken so far.
            before: Each parameter before the step.
            displacement: Displacement of each parameter; empty if no step was taken.
            long: Whether the whole panel is due.
            groups: Parameter groups of the optimizer with the settings of the step. Default: its present ones.
        """
        taken = RecordedStep(before, displacement, groups) if displacement else None
        panel, found = self._panel(taken), Rows()
        for names, measure in self._due(long, stepped=taken is not None):
            rows = self._attempt(step, names, partial(measure, panel))
            if rows is None:
                panel = self._panel(taken)  # drops the graphs and vectors of the measurement that failed
            else:
                found += rows
        if not found.probes:
            return found
        complete = self._attempt(step, (), lambda: panel.with_provenance(found, step))
        return Rows() if complete is None else complete

    def _panel(self, taken: RecordedStep | None) -> Panel:
        """Return a new panel at the present parameters."""
        return Panel(replace(self._target, step=taken), self._options, self._near)

    def _due(self, long: bool, *, stepped: bool) -> Iterator[tuple[Sequence[str], Callable[[Panel], Rows]]]:
        """Yield the names of the measures that are due and the function that measures them, in order."""
        evaluation = Evaluation(
            long=long, stepped=stepped, eigenvalues=self._preset.top, tracked=self._tracker is not None
        )
        for schedule, group in recorded_groups():
            if schedule.after_tracker and self._tracker is not None:
                yield ("lambda_max", "sharpness_edge_ratio"), partial(_tracked, self._tracker)
            if names := schedule.names(evaluation):
                yield sorted(names), partial(_measured, group, names)

    def _attempt(self, step: int, names: Sequence[str], measure: Callable[[], Rows]) -> Rows | None:
        """Return the rows of a measurement; if it fails, None, and note the reason."""
        found: Rows | None = None
        with self._faults.guarded("curvature", step, names):
            found = measure()
        return found

    def note(self, found: Rows, training_loss: float) -> str | None:
        """Return a sentence if the loss on the fixed data is not the one that is trained, see `batch_norm_note`."""
        values = [float(row["value"]) for row in found.probes if row["measure"] == "loss"]
        return batch_norm_note(self.objective, values[0], training_loss) if values else None

    def layers(self, step: int, before: ByParameter, displacement: ByParameter) -> LayerRemainders | None:
        """Return the Taylor remainder of each layer as if it alone took its part of the step; None if it failed."""
        found: LayerRemainders | None = None
        with self._faults.guarded("layers", step):
            at = flat_vector(self.objective, before)
            found = layer_remainders(self.objective, flat_vector(self.objective, displacement), at=at)
        return found


def _measured(group: MeasureGroup, names: Collection[str], panel: Panel) -> Rows:
    """Return the rows of some measures of a group."""
    return group.measure(panel, names)


def _tracked(tracker: EigenTracker, panel: Panel) -> Rows:
    """Return the rows of the tracked eigenvalue."""
    return panel.tracked(tracker)
