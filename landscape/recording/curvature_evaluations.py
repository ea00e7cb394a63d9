"""Curvature evaluations of a recorded training: the scheduled groups of measures on the fixed data, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.measures.catalogue import recorded_groups
from lossscope.landscape.measures.estimate_rows import Rows
from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.measures.measure_group import Evaluation
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.measures.step_measures import ByParameter, RecordedStep, flat_vector
from lossscope.landscape.recording.cadence import Preset
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.errors import ProbeError
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

    Attributes:
        missing: Evaluations at which a group could not be measured, with the reason.
    """

    def __init__(self, objective: Objective, preset: Preset, optimizer: Optimizer | None = None, seed: int = 0) -> None:
        self.objective = objective
        self.missing: list[Row] = []
        self._preset = preset
        self._target = MeasurementTarget(objective, optimizer)
        self._options = SolverOptions(preset.rel, preset.trace_rel, preset.products, seed)
        self._tracker = EigenTracker(preset.rel, max_products=preset.products, seed=seed) if preset.tracked else None
        self._near: dict[str, Tensor] = {}

    def rows(self, step: int, before: ByParameter, displacement: ByParameter, *, long: bool = True) -> Rows:
        """Return the rows of an evaluation after `step` steps.

        A group that cannot be measured (weights that are not finite, say) is missing and stops no training.

        Args:
            step: Steps taken so far.
            before: Each parameter before the step.
            displacement: Displacement of each parameter; empty if no step was taken.
            long: Whether the whole panel is due.
        """
        taken = RecordedStep(before, displacement) if displacement else None
        panel = Panel(replace(self._target, step=taken), self._options, self._near)
        found = Rows()
        for measure in self._due(panel, long):
            found += self._attempt(step, measure)
        return panel.with_provenance(found, step) if found.probes else found

    def _due(self, panel: Panel, long: bool) -> Iterator[Callable[[], Rows]]:
        """Yield the measurements that are due, in order."""
        evaluation = Evaluation(
            long=long,
            stepped=panel.target.step is not None,
            eigenvalues=self._preset.top,
            tracked=self._tracker is not None,
        )
        for schedule, group in recorded_groups():
            if schedule.after_tracker and self._tracker is not None:
                yield partial(panel.tracked, self._tracker)
            if names := schedule.names(evaluation):
                yield partial(group.measure, panel, names)

    def _attempt(self, step: int, measure: Callable[[], Rows]) -> Rows:
        """Return the rows of a measurement; if it fails, none, and note the reason."""
        try:
            return measure()
        except ProbeError as error:
            self.missing.append({"step": step, "instrument": "curvature", "why": str(error)})
            return Rows()

    def layers(self, step: int, before: ByParameter, displacement: ByParameter) -> LayerRemainders | None:
        """Return the Taylor remainder of each layer as if it alone took its part of the step; None if it failed."""
        try:
            at = flat_vector(self.objective, before)
            return layer_remainders(self.objective, flat_vector(self.objective, displacement), at=at)
        except ProbeError as error:
            self.missing.append({"step": step, "instrument": "layers", "why": str(error)})
            return None
