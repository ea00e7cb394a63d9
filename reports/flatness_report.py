"""The flatness report: what exists so far of the reparametrisation-invariant panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.series import by_arm
from lossscope.reports.checks import losses_matched, precise
from lossscope.reports.content import Cell, Column, Missing, Report, Table
from lossscope.reports.panels import adaptive_trace_figure, loss_figure
from lossscope.reports.provenance import ending_notes, missing_curvature, provenance, runs_in_words
from lossscope.reports.quantities import (
    at_last_visit,
    last_number,
    last_visit,
    loss_at_last_visit,
    median_and_range,
    widest_error,
)
from lossscope.reports.wording import ADAPTIVE_NOTE, LOSS_NOTE, SEEDS_NOTE

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["flatness"]

_NO_COMPARISON: Final = (
    "No comparison is made: the visits are at equal steps, not at matched train loss, four measures of the panel are "
    "needed and two exist here, and a verdict needs at least 6 paired seeds."
)
_NOT_HERE: Final = (
    Missing("Logit-normalised worst-case adaptive sharpness", "Not measured by this version."),
    Missing("Relative flatness", "Not measured by this version."),
    Missing("Sigma at a target loss, multiplicative", "Not measured by this version."),
)
_SHARED: Final = (
    Column("loss", "train loss", "nats", LOSS_NOTE),
    Column("weight_norm", "‖θ‖", "1", "norm of all parameters at the last recorded step"),
)
_RUN_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("arm", "arm", words=True),
    Column("step", "step", "", "step of the last curvature visit"),
    *_SHARED,
    Column("adaptive_trace", "adaptive trace ± SE [95 %]", "nats", "Σ θ_i² H_ii"),
    Column("log_fisher_rao", "log Fisher-Rao", "1", "natural logarithm of the Fisher-Rao norm"),
)
_ARM_COLUMNS: Final = (
    Column("arm", "arm", words=True),
    Column("seeds", "seeds"),
    *_SHARED,
    Column("adaptive_trace", "adaptive trace", "nats"),
    Column("adaptive_trace_error", "its widest SE", "nats"),
    Column("log_fisher_rao", "log Fisher-Rao", "1"),
)


def flatness(runs: Sequence[Run]) -> Report:
    """The flatness report of the runs: adaptive trace and log Fisher-Rao norm, and what the panel still lacks.

    Args:
        runs: any runs, live, crashed and failed ones included.

    Returns:
        The report as data. It compares no arms and says why.
    """
    return Report(
        kind="flatness",
        title="Flatness",
        subtitle=runs_in_words(runs),
        findings=(precise(runs, "adaptive_trace", "the adaptive trace"), losses_matched(runs)),
        tables=(_run_table(runs), _arm_table(runs)),
        figures=(adaptive_trace_figure(runs), loss_figure(runs)),
        notes=(*ending_notes(runs), _NO_COMPARISON, ADAPTIVE_NOTE),
        missing=(*missing_curvature(runs), *_NOT_HERE),
        provenance=provenance(runs),
    )


def _run_table(runs: Sequence[Run]) -> Table:
    """A row per run at its last visit."""
    rows = tuple(_run_row(arm, run) for arm, members in by_arm(runs).items() for run in members)
    return Table("runs", "Each run at its last visit", _RUN_COLUMNS, rows, f"{ADAPTIVE_NOTE} {LOSS_NOTE}")


def _run_row(arm: str, run: Run) -> tuple[Cell, ...]:
    """One run at its last visit."""
    return (
        run.name,
        arm,
        last_visit(run),
        loss_at_last_visit(run),
        last_number(run.steps, "weight_norm"),
        at_last_visit(run, "adaptive_trace"),
        at_last_visit(run, "log_fisher_rao"),
    )


def _arm_table(runs: Sequence[Run]) -> Table:
    """A row per arm: median and range over its seeds."""
    rows = tuple(_arm_row(arm, members) for arm, members in by_arm(runs).items())
    title = "Each arm at its last visits: median [range over seeds]"
    return Table("arms", title, _ARM_COLUMNS, rows, SEEDS_NOTE)


def _arm_row(arm: str, runs: Sequence[Run]) -> tuple[Cell, ...]:
    """One arm over its seeds."""
    return (
        arm,
        len(runs),
        median_and_range(loss_at_last_visit(run) for run in runs),
        median_and_range(last_number(run.steps, "weight_norm") for run in runs),
        median_and_range(at_last_visit(run, "adaptive_trace").value for run in runs),
        widest_error([at_last_visit(run, "adaptive_trace") for run in runs]),
        median_and_range(at_last_visit(run, "log_fisher_rao").value for run in runs),
    )
