"""Curvature evaluations of a recorded training: the scheduled groups of measures on the fixed data, as rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, Final

from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.catalogue import recorded_groups
from lossscope.landscape.measures.estimate_rows import Rows
from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.measures.measure_group import Evaluation, MeasureGroup
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.measures.step_measures import ByParameter, RecordedStep, flat_vector
from lossscope.landscape.recording.cadence import Preset
from lossscope.landscape.recording.cost_cap import CostCap, MeasurementCosts
from lossscope.landscape.recording.faults import Faults
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.objective.fixed_loss import batch_norm_note
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.step_quality import LayerRemainders, layer_remainders

__all__ = ["CurvatureEvaluations", "wanted_measures"]

_LEAST: Final = 8  # products of a lambda_max that is cut to fit: its value is within percent, its bound is wide
_WITHOUT_BUDGET: Final = 4  # products that a group without a budget takes at most


@dataclass(frozen=True)
class _Measurement:
    """A measurement that is due at an evaluation."""

    measures: tuple[str, ...]
    products: int  # Hessian products that it takes at most
    run: Callable[[Panel], Rows]


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
        wanted: Returns True for the names of measures to take.
    """

    def __init__(
        self,
        objective: Objective,
        preset: Preset,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        faults: Faults | None = None,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.objective = objective
        self._faults = faults or Faults("curvature")
        self._preset = preset
        self._wanted = wanted
        self._target = MeasurementTarget(objective, optimizer)
        self._options = SolverOptions(preset.rel, preset.trace_rel, preset.products, seed)
        self._tracker = EigenTracker(preset.rel, max_products=preset.products, seed=seed) if preset.tracked else None
        self._near: dict[str, Tensor] = {}
        self._costs = MeasurementCosts()

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
        cap: CostCap | None = None,
        at_least_lambda_max: bool = False,
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
            cap: Takes the loss, and of the rest what is predicted to fit under this cap; None takes everything.
            at_least_lambda_max: Takes `lambda_max` with a few products where it does not fit under the cap.
        """
        taken = RecordedStep(before, displacement, groups) if displacement else None
        deadline = time.perf_counter() + (math.inf if cap is None else cap.left)
        panel, found, skipped = self._panel(taken), Rows(), list[str]()
        for due in self._due(long, stepped=taken is not None):
            left = deadline - time.perf_counter()
            run, names = due.run, due.measures
            if cap is not None and cap.limited and names != ("loss",) and self._seconds(due, panel) > left:
                products = self._fitting(panel, left, at_least_lambda_max) if "lambda_max" in names else 0
                skipped += [name for name in names if name != "lambda_max" or not products]
                if not products:
                    continue
                run, names = partial(_cut_lambda_max, products), ("lambda_max",)
            with self._costs.timed(due.measures if run is due.run else ()):
                rows = self._attempt(step, names, partial(run, panel))
            if rows is None:
                panel = self._panel(taken)  # drops the graphs and vectors of the measurement that failed
            else:
                found += rows
        if cap is not None and skipped:
            self._faults.note("curvature", step, cap.reason(), skipped, topic="overhead")
        if not found.probes:
            return found
        complete = self._attempt(step, (), lambda: panel.with_provenance(found, step))
        return Rows() if complete is None else complete

    def predicted(self, *, long: bool, stepped: bool) -> float:
        """Return the seconds that an evaluation is predicted to take. A product is timed at the first call."""
        panel = self._panel(None)
        return sum(self._seconds(due, panel) for due in self._due(long, stepped=stepped))

    def _panel(self, taken: RecordedStep | None) -> Panel:
        """Return a new panel at the present parameters."""
        return Panel(replace(self._target, step=taken), self._options, self._near)

    def _due(self, long: bool, *, stepped: bool) -> Iterator[_Measurement]:
        """Yield the measurements that are due, in order."""
        evaluation = Evaluation(
            long=long, stepped=stepped, eigenvalues=self._preset.top, tracked=self._tracker is not None
        )
        budget = self._options.max_products
        for schedule, group in recorded_groups():
            if schedule.after_tracker and self._tracker is not None and self._wanted("lambda_max"):
                yield _Measurement(("lambda_max", "sharpness_edge_ratio"), budget, partial(_tracked, self._tracker))
            names = tuple(sorted(filter(self._wanted, schedule.names(evaluation))))
            if names:
                products = _WITHOUT_BUDGET if group.least_products is None else budget
                yield _Measurement(names, products, partial(_measured, group, names))

    def _seconds(self, due: _Measurement, panel: Panel) -> float:
        """Return the seconds that a measurement is predicted to take."""
        return self._costs.predicted(due.measures, due.products, panel.hessian)

    def _fitting(self, panel: Panel, left: float, at_least: bool) -> int:
        """Return the number of products for lambda_max that fit into the seconds left; 0 if they are too few."""
        product = self._costs.product_seconds(panel.hessian)
        fit = int(left / product) if product > 0 and left > 0 else 0
        if fit < _LEAST and not at_least:
            return 0
        return min(max(fit, _LEAST), self._options.max_products)

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


def _cut_lambda_max(products: int, panel: Panel) -> Rows:
    """Measure lambda_max with a few products. Its bound is wide, and the row says that it has not converged."""
    cut = Panel(panel.target, replace(panel.options, max_products=products))
    return cut.spectrum(frozenset({"lambda_max"}))


def wanted_measures(names: Collection[str] | None) -> Callable[[str], bool]:
    """Return the test of a measure's name that takes the loss and these measures and groups; None takes all.

    Raises:
        ConfigError: A name is no recorded measure or group.
    """
    if names is None:
        return lambda name: True
    groups = {group.name: set(group.names) for _, group in recorded_groups()}
    known = {name for members in groups.values() for name in members} | set(groups)
    given = [names] if isinstance(names, str) else list(names)
    for name in given:
        if name not in known:
            close = get_close_matches(str(name), sorted(known), n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else "; `lossscope list measures` names them"
            raise ConfigError(f"measures must be names of recorded measures or groups, got {name!r}{hint}")
    chosen = {"loss"}.union(*(groups.get(name, set()) | {name} for name in given))
    return chosen.__contains__
