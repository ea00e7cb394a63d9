"""Curvature evaluations of a recorded training: the scheduled groups of measures on the fixed data, as rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.catalogue import GROUPS, group_of, recorded_groups
from lossscope.landscape.measures.estimate_rows import Rows
from lossscope.landscape.measures.forward_mode import forward_mode_seconds, load_forward_mode
from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.measures.mean_losses import same_loss
from lossscope.landscape.measures.measure import EIGENVALUES, VERDICT
from lossscope.landscape.measures.measure_group import Evaluation, MeasureGroup
from lossscope.landscape.measures.memory import evaluation_copies
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.measures.step_measures import ByParameter, RecordedStep, flat_vector
from lossscope.landscape.recording.cadence import Preset
from lossscope.landscape.recording.cost_cap import CostCap, MeasurementCosts
from lossscope.landscape.recording.faults import Faults
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.eigenvalues.memory_plan import REFERENCE, byte_count
from lossscope.probes.objective.fixed_loss import batch_norm_note
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.assumed_rounding import assuming_rounding
from lossscope.probes.sharpness.step_quality import LayerRemainders, layer_remainders

__all__ = ["CurvatureEvaluations", "Wanted", "wanted_measures"]

_LEAST: Final = 8  # products of a lambda_max that is cut to fit: its value is within percent, its bound is wide
_WITH_TRACE: Final = 2 * _LEAST  # products from which half of them are left for a trace
_CUT: Final = {"lambda_max", "sharpness_edge_ratio", "preconditioned_sharpness", "preconditioned_edge_ratio"}
_CUT_LONGER: Final = {"trace"}
_NEEDS_TOP: Final = {"top_share", "top5_share", "gradient_cosine", "gradient_rayleigh"}
_VERDICT_TRACE: Final = 0.03  # standard error of a trace that a verdict reads: below the spread over seeds
_VERDICT_PRODUCTS: Final = 64  # twice what both numbers take on a small network
_WITHOUT_BUDGET: Final = 4  # products that a group without a budget takes at most


@dataclass(frozen=True)
class _Measurement:
    """A measurement that is due at an evaluation."""

    measures: tuple[str, ...]
    products: int  # Hessian products that it takes at most
    run: Callable[[Panel], Rows]
    cut: Callable[[Panel, Collection[str]], Rows] | None = None  # takes place with fewer products, too
    always: bool = False  # takes place whatever the cap leaves


@dataclass(frozen=True)
class Wanted:
    """The measures to take, by name; None takes all at the evaluations of the preset."""

    names: frozenset[str] | None

    def __call__(self, name: str) -> bool:
        """Return True if a measure is to be taken."""
        return self.names is None or name in self.names


class CurvatureEvaluations:
    """Measure curvature at the present parameters, starting from the top eigenvectors of the last if the preset does.

    The catalogue declares which measures are due (`MeasureGroup.recorded`). A short evaluation takes the losses,
    `lambda_max` and both curvatures along the step taken. A long one takes the whole panel, and the error of the
    linear and quadratic models along the step. If the preset tracks, `lambda_max` is tracked from each evaluation to
    the next for a few products; otherwise it is read off the panel's Krylov space.

    Args:
        objective: The loss on fixed data.
        preset: Tolerances, budget and number of eigenvalues.
        optimizer: The optimizer, for its metric and its stability thresholds.
        seed: Seed of all random vectors.
        faults: Collects the groups that could not be measured, with the reason.
        wanted: The measures to take. Where flatness that a verdict reads is named, it is taken at every evaluation,
            with an error of traces of at most 3 %.
        train: The same loss on all training data; None for no `train_loss`.
        test: The same loss on test data; None for no `test_loss`.
        memory: Memory for the vectors of a measurement, as in `measure_spectrum`.
        spill: Folder of a basis that does not fit.
    """

    def __init__(
        self,
        objective: Objective,
        preset: Preset,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        faults: Faults | None = None,
        wanted: Wanted | None = None,
        *,
        train: Objective | None = None,
        test: Objective | None = None,
        memory: int | str | None = None,
        spill: str | Path | None = None,
    ) -> None:
        self.objective = objective
        self._faults = faults or Faults("curvature")
        self._preset = preset
        self._wanted = wanted or Wanted(None)
        self._target = MeasurementTarget(objective, optimizer, train=train, test=test)
        for_verdict = bool(self._wanted.names and self._wanted.names & VERDICT)
        trace_rel = min(preset.trace_rel, _VERDICT_TRACE) if for_verdict else preset.trace_rel
        products = max(preset.products, _VERDICT_PRODUCTS) if for_verdict else preset.products
        self._options = SolverOptions(preset.rel, trace_rel, products, seed, memory=memory, spill=spill)
        self._others = {name: one for name, one in (("train_loss", train), ("test_loss", test)) if one is not None}
        tracker = partial(EigenTracker, preset.rel, max_products=preset.products, seed=seed, memory=memory)
        self._tracker = tracker() if preset.tracked else None
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
        with assuming_rounding(self._is_sparing):
            return self._rows(step, taken, long, cap, at_least_lambda_max)

    @property
    def _is_sparing(self) -> bool:
        """True if the memory is less than a product in float64 takes, by which rounding is measured."""
        return self._fit is not None and self._fit < REFERENCE

    @property
    def _fit(self) -> int | None:
        """Copies of the parameters that the memory holds; None without a limit."""
        memory, one = self._options.memory, self.objective.size * self.objective.dtype.itemsize
        return None if memory is None else byte_count(memory) // one

    def _rows(
        self, step: int, taken: RecordedStep | None, long: bool, cap: CostCap | None, at_least_lambda_max: bool
    ) -> Rows:
        """Return the rows of an evaluation after a step that is recorded, or None."""
        deadline = time.perf_counter() + (math.inf if cap is None else cap.left)
        panel, found, skipped = self._panel(taken), Rows(), list[str]()
        waiting = list(self._due(long, stepped=taken is not None))
        while waiting:
            due = waiting.pop(0)
            names, products = due.measures, 0
            left = deadline - time.perf_counter()
            if cap is not None and cap.limited and not due.always and self._seconds(due, panel) > left:
                least = at_least_lambda_max and "lambda_max" in names
                names, products = self._cut(due, panel, left, waiting, at_least=least)
            if _NEEDS_TOP & {*names} and {*EIGENVALUES} & {*skipped}:
                names = ()  # it would measure the eigenvectors itself, which costs what did not fit
            skipped += [name for name in due.measures if name not in names]
            if not names:
                continue
            if "log_fisher_rao" in names:
                load_forward_mode()  # once per process, so it is not the time of the measurement
            run = partial(_cut_run, due, names, products) if products else due.run
            with self._costs.timed(due.measures, products):
                rows = self._attempt(step, names, partial(run, panel))
            if rows is None:
                panel = self._panel(taken)  # drops the graphs and vectors of the measurement that failed
            else:
                found += rows
                self._note_failed(step, panel)
        if cap is not None and skipped:
            self._faults.note("curvature", step, cap.reason("curvature"), skipped, topic="overhead")
        if not found.probes:
            return found
        complete = self._attempt(step, (), lambda: panel.with_provenance(found, step))
        return Rows() if complete is None else complete

    def predicted(self, *, long: bool, stepped: bool) -> float:
        """Return the seconds that an evaluation is predicted to take. A product is timed at the first call."""
        panel = self._panel(None)
        return sum(self._seconds(due, panel) for due in self._due(long, stepped=stepped))

    def least(self) -> float:
        """Return the seconds that the loss, the least of an evaluation, is predicted to take."""
        return self._costs.predicted(("loss",), _WITHOUT_BUDGET, self._panel(None).hessian)

    def least_lambda_max(self) -> float:
        """Return the seconds that the loss and `lambda_max` with the fewest products are predicted to take."""
        return self.least() + self._costs.of_products(_LEAST, self._panel(None).hessian)

    @property
    def copies(self) -> int:
        """Copies of the parameters that an evaluation holds at most, beside the graphs of the loss."""
        due = [frozenset(one.measures) for one in self._due(True, stepped=True)]
        measured = [(GROUPS[group_of(min(names))], names) for names in due]
        return evaluation_copies(measured, self._options.max_products, self._fit)

    @property
    def memory(self) -> int:
        """Bytes of these copies."""
        return self.copies * self.objective.size * self.objective.dtype.itemsize

    def _panel(self, taken: RecordedStep | None) -> Panel:
        """Return a new panel at the present parameters."""
        near = self._near if self._preset.warm else {}
        return Panel(replace(self._target, step=taken), self._options, near)

    def _due(self, long: bool, *, stepped: bool) -> Iterator[_Measurement]:
        """Yield the measurements that are due, in order."""
        evaluation = Evaluation(
            long=long,
            stepped=stepped,
            eigenvalues=self._preset.top,
            tracked=self._tracker is not None,
            losses=frozenset(self._others),
            named=self._wanted.names is not None,
            full=self._preset.name == "full",
        )
        budget = self._options.max_products
        for schedule, group in recorded_groups():
            if schedule.after_tracker and self._tracker is not None and self._wanted("lambda_max"):
                top = ("lambda_max", "sharpness_edge_ratio")
                yield _Measurement(top, budget, partial(_tracked, self._tracker), _measured_spectrum)
            names = tuple(sorted(filter(self._wanted, schedule.names(evaluation))))
            if names == ("loss",) or {*names} & {*self._others}:
                yield self._of_loss(group, names)
            elif names:
                found = self._wanted("lambda_max") and bool(_NEEDS_TOP & {*names})  # eigenvectors, measured before
                products = _WITHOUT_BUDGET if found or group.least_products is None else budget
                cut = partial(_measured, group) if _CUT & {*names} else None
                yield _Measurement(names, products, partial(_measured, group, names=names), cut)

    def _of_loss(self, group: MeasureGroup, names: tuple[str, ...]) -> _Measurement:
        """Return the measurement of a mean loss; on other data it takes longer by their number."""
        other = self._others.get(names[0], self.objective)
        known = same_loss(other, self.objective)
        times = 0 if known and names != ("loss",) else math.ceil(other.samples / self.objective.samples)
        return _Measurement(names, _WITHOUT_BUDGET * times, partial(_measured, group, names=names), always=known)

    def _seconds(self, due: _Measurement, panel: Panel) -> float:
        """Return the seconds that a measurement is predicted to take."""
        loading = forward_mode_seconds() if "log_fisher_rao" in due.measures else 0.0
        return loading + self._costs.predicted(due.measures, due.products, panel.hessian)

    def _cut(
        self, due: _Measurement, panel: Panel, left: float, waiting: Sequence[_Measurement], *, at_least: bool
    ) -> tuple[tuple[str, ...], int]:
        """Return the measures, and the number of products for them, to which a measurement is cut; none if too few fit.

        What is left is shared with the later measurements that can be cut, after those that take few products.

        Args:
            due: The measurement, which does not fit as a whole.
            panel: The loss at the present parameters.
            left: Seconds that are left.
            waiting: The later measurements of the evaluation.
            at_least: Cut to the least number of products if even that does not fit.
        """
        if due.cut is None:
            return (), 0
        others = sum(self._seconds(one, panel) for one in waiting if one.products == _WITHOUT_BUDGET)
        shares = 1 + sum(one.cut is not None for one in waiting)
        fit = self._costs.fitting((left - others) / shares, panel.hessian)
        if fit < _LEAST:
            fit = min(self._costs.fitting(left, panel.hessian), _LEAST)
        if fit < _LEAST and not at_least:
            return (), 0
        products = min(max(fit, _LEAST), self._options.max_products)
        kept = _CUT | (_CUT_LONGER if products >= _WITH_TRACE else set())
        return tuple(name for name in due.measures if name in kept), products

    def _attempt(self, step: int, names: Sequence[str], measure: Callable[[], Rows]) -> Rows | None:
        """Return the rows of a measurement; if it fails, None, and note the reason."""
        found: Rows | None = None
        with self._faults.guarded("curvature", step, names):
            found = measure()
        return found

    def _note_failed(self, step: int, panel: Panel) -> None:
        """Note the measures that a measurement could not take although it took others, by reason."""
        reasons = dict.fromkeys(panel.failed.values())
        for why in reasons:
            names = [name for name, one in panel.failed.items() if one == why]
            self._faults.note_quietly("curvature", step, why, names)
        panel.failed.clear()

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


def _measured(group: MeasureGroup, panel: Panel, names: Collection[str]) -> Rows:
    """Return the rows of some measures of a group."""
    return group.measure(panel, names)


def _measured_spectrum(panel: Panel, names: Collection[str]) -> Rows:
    """Return the rows of some measures of the spectrum."""
    return panel.spectrum(frozenset(names))


def _tracked(tracker: EigenTracker, panel: Panel) -> Rows:
    """Return the rows of the tracked eigenvalue."""
    return panel.tracked(tracker)


def _cut_run(due: _Measurement, names: Sequence[str], products: int, panel: Panel) -> Rows:
    """Take some measures with a few products. Their bounds are wide, and rows say where they have not converged."""
    if due.cut is None:
        return Rows()
    options = panel.options
    panel.options = replace(options, max_products=products)
    try:
        return due.cut(panel, names)
    finally:
        panel.options = options


def wanted_measures(names: Collection[str] | None) -> Wanted:
    """Return the test of a measure's name that takes the losses and these measures and groups; None takes all.

    Raises:
        ConfigError: A name is no recorded measure or group.
    """
    if names is None:
        return Wanted(None)
    groups = {group.name: set(group.names) for _, group in recorded_groups()}
    known = {name for members in groups.values() for name in members} | set(groups)
    try:
        given = [names] if isinstance(names, str) else list(names)
    except TypeError:
        raise ConfigError(f"measures must be a list of names of recorded measures or groups, got {names!r}") from None
    for name in given:
        if not isinstance(name, str) or name not in known:
            close = get_close_matches(str(name), sorted(known), n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else "; `lossscope list measures` names them"
            raise ConfigError(f"measures must be names of recorded measures or groups, got {name!r}{hint}")
    return Wanted(
        frozenset({"loss", "train_loss", "test_loss"}.union(*(groups.get(name, set()) | {name} for name in given)))
    )
