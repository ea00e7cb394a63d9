"""Overview report: one table of all arms, norm controls, and every figure; the demo writes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.reports.content import Cell, Column, Quantity, Report, Table
from lossscope.reports.first_screen.screen import with_first_screen
from lossscope.reports.shared.completed import completed
from lossscope.reports.shared.evaluation_tables import repeated_seeds
from lossscope.reports.shared.figures import (
    adaptive_trace_figure,
    edge_figure,
    energy_figure,
    entropy_figure,
    loss_figure,
    shear_figure,
    trace_figure,
)
from lossscope.reports.shared.findings import (
    bounds_met,
    edge_below_one,
    entropy_raised,
    losses_matched,
    precise,
    runs_finished,
)
from lossscope.reports.shared.loss_unit import LOSS, in_loss_unit, loss_unit
from lossscope.reports.shared.norm_tables import norm_table
from lossscope.reports.shared.notes import HESSIAN_NOTE, SEEDS_NOTE, VERDICT_NOTE, flattening_notes
from lossscope.reports.shared.precision import precision_notes
from lossscope.reports.shared.provenance import (
    ending_notes,
    missing_curvature,
    missing_spectra,
    provenance,
    runs_in_words,
)
from lossscope.reports.shared.quantities import (
    at_last_evaluation,
    last_number,
    last_spectra,
    mean_and_range,
    overhead_percent,
    seed_count,
    summarized,
    widest_error,
)
from lossscope.reports.shared.threshold_figures import eigenvalue_figure

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["overview"]

_ARMS_PER_TABLE: Final = 4


@np.errstate(all="ignore")  # numbers of a diverged run overflow; what is not finite is shown as missing
def overview(runs: Sequence[Run]) -> Report:
    """Return the overview: a table of medians over seeds, norm controls, and the figures of the other reports.

    Args:
        runs: Any runs; live, crashed and failed runs are allowed.

    Returns:
        The report as data. A measure that an arm did not record is missing.
    """
    report = Report(
        kind="overview",
        title="Overview",
        subtitle=runs_in_words(runs),
        findings=(
            runs_finished(runs),
            bounds_met(runs),
            precise(runs, "trace", "the trace"),
            edge_below_one(runs),
            entropy_raised(runs),
            losses_matched(runs),
        ),
        tables=in_loss_unit((*_tables(runs), *norm_table(runs)), runs),
        figures=(
            loss_figure(runs),
            eigenvalue_figure(runs),
            edge_figure(runs),
            trace_figure(runs),
            adaptive_trace_figure(runs),
            entropy_figure(runs),
            shear_figure(runs),
            energy_figure(runs),
        ),
        notes=(*ending_notes(runs), *precision_notes(runs), HESSIAN_NOTE, VERDICT_NOTE, *flattening_notes(runs)),
        missing=(*missing_curvature(runs), *missing_spectra(runs)),
        provenance=provenance(runs),
    )
    return with_first_screen(completed(report, runs), runs)


def _tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the summary, one row per measure and one column per arm, with a few arms per table."""
    arms = list(by_arm(runs).items())
    groups = [arms[first : first + _ARMS_PER_TABLE] for first in range(0, len(arms), _ARMS_PER_TABLE)]
    return tuple(_table(number, group, loss_unit(runs)) for number, group in enumerate(groups, start=1))


def _table(number: int, arms: Sequence[tuple[str, Sequence[Run]]], loss: str) -> Table:
    """Return the summary of a few arms."""
    heads = tuple(Column(f"arm_{place}", arm) for place, (arm, _) in enumerate(arms, start=1))
    columns = (Column("measure", "measure", words=True), Column("unit", "unit", words=True), *heads)
    rows: list[tuple[Cell, ...]] = [("seeds", "", *(seed_count(members) for _, members in arms))]
    measured: list[tuple[Cell, ...]] = [
        (
            words,
            loss if unit == LOSS else unit,
            *(summarized(value(run) for run in members) for _, members in arms),
        )
        for words, unit, value in _MEASURES
        if words not in _OPTIONAL or any(value(run).value is not None for _, members in arms for run in members)
    ]
    errors: list[tuple[Cell, ...]] = [
        (words, loss, *(widest_error([at_last_evaluation(run, measure) for run in members]) for _, members in arms))
        for words, measure in _ERRORS
    ]
    key = "summary" if number == 1 else f"summary_{number}"
    note = " ".join([*repeated_seeds([run for _, members in arms for run in members]), HESSIAN_NOTE, SEEDS_NOTE])
    return Table(
        key, "Each arm at the end of training: median [range over seeds]", columns, (*rows, *measured, *errors), note
    )


def _probe(measure: str) -> Callable[[Run], Quantity]:
    """Return a function from a run to a measure at its last evaluation."""
    return lambda run: at_last_evaluation(run, measure)


def _step(column: str, factor: float = 1.0) -> Callable[[Run], Quantity]:
    """Return a function from a run to the last value of a column of `steps`, times a unit factor."""

    def value(run: Run) -> Quantity:
        last = last_number(run, column)
        return Quantity(None if last is None else factor * last)

    return value


def _entropy(kind: str) -> Callable[[Run], Quantity]:
    """Return a function from a run to the mean energy entropy over matrices at the last step with spectra."""

    def value(run: Run) -> Quantity:
        rows = last_spectra(run)
        return Quantity(mean_and_range(rows[rows["object"] == kind]["entropy_energy"].dropna()).value)

    return value


def _overhead(run: Run) -> Quantity:
    """Return the recording overhead in percent of the wall time."""
    return Quantity(overhead_percent(run))


def _energy(run: Run) -> Quantity:
    """Return the mean of E / sqrt(numel) over the matrices at the last step that has it."""
    rows = run.columns("tensors", "step", "track", "energy_rms")
    rows = rows[rows["track"] == "matrix"].dropna(subset=["energy_rms"])
    return Quantity(mean_and_range(rows[rows["step"] == rows["step"].max()]["energy_rms"]).value)


_MEASURES: Final[tuple[tuple[str, str, Callable[[Run], Quantity]], ...]] = (
    ("train loss, last step", LOSS, _step("loss")),
    ("train loss, all training data", LOSS, _probe("train_loss")),
    ("test loss", LOSS, _probe("test_loss")),
    ("train accuracy", "%", _step("train_accuracy", 100)),
    ("test loss, last logged", LOSS, _step("test_loss")),
    ("test accuracy", "%", _step("test_accuracy", 100)),
    ("λ_max", LOSS, _probe("lambda_max")),
    ("trace", LOSS, _probe("trace")),
    ("adaptive trace", LOSS, _probe("adaptive_trace")),
    ("directional edge ratio", "", _probe("directional_edge_ratio")),
    ("entropy before Newton-Schulz", "", _entropy("whitened")),
    ("entropy after Newton-Schulz", "", _entropy("orthogonal")),
    ("shear angle", "°", _step("adversarial_angle", 180 / math.pi)),
    ("Fisher energy of matrices, E / √numel", "", _energy),
    ("recording overhead", "%", _overhead),
)
# A Recorder that was not given the data has neither loss; training loops log the other two or not.
_OPTIONAL: Final = ("train loss, all training data", "test loss", "train accuracy", "test loss, last logged")
_ERRORS: Final = (
    ("λ_max: largest bound", "lambda_max"),
    ("trace: largest standard error", "trace"),
    ("adaptive trace: largest standard error", "adaptive_trace"),
)
