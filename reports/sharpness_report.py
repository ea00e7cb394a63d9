"""The sharpness report: eigenvalues, trace and R_dir of runs, with what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.series import by_arm
from lossscope.reports.checks import bounds_met, edge_below_one, no_negative_curvature, precise
from lossscope.reports.content import Cell, Column, Report, Table
from lossscope.reports.panels import edge_figure, eigenvalue_figure, loss_figure, trace_figure
from lossscope.reports.provenance import ending_notes, missing_curvature, provenance, runs_in_words
from lossscope.reports.quantities import (
    at_last_visit,
    curvature_cost,
    last_visit,
    loss_at_last_visit,
    median_and_range,
    overhead_percent,
    widest_error,
)
from lossscope.reports.wording import HESSIAN_NOTE, LOSS_NOTE, SEEDS_NOTE, VERDICT_NOTE

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["sharpness"]

_RUN: Final = Column("run", "run", words=True)
_ARM: Final = Column("arm", "arm", words=True)
_RUN_COLUMNS: Final = (
    _RUN,
    _ARM,
    Column("step", "step", "", "step of the last curvature visit"),
    Column("loss", "train loss", "nats", LOSS_NOTE),
    Column("lambda_max", "λ_max ± bound", "nats", "largest Hessian eigenvalue and its residual bound"),
    Column("lambda_min", "λ_min ± bound", "nats", "smallest Hessian eigenvalue and its residual bound"),
    Column("trace", "trace ± SE [95 %]", "nats", "Hutchinson estimate, standard error, 95 % interval"),
    Column("edge_ratio", "R_dir", "1", "η dᵀHd / (2 gᵀd) of the step taken"),
)
_ARM_COLUMNS: Final = (
    _ARM,
    Column("seeds", "seeds"),
    Column("loss", "train loss", "nats", LOSS_NOTE),
    Column("lambda_max", "λ_max", "nats"),
    Column("lambda_min", "λ_min", "nats"),
    Column("trace", "trace", "nats"),
    Column("trace_error", "its widest SE", "nats", "largest standard error of the trace among the seeds"),
    Column("edge_ratio", "R_dir", "1"),
)
_COST_COLUMNS: Final = (
    _RUN,
    Column("visits", "visits", "", "curvature visits"),
    Column("products", "products", "", "Hessian products spent"),
    Column("seconds", "curvature", "s", "time spent on curvature"),
    Column("overhead", "recorder's share", "%", "share of the wall time spent in the recorder"),
)


def sharpness(runs: Sequence[Run]) -> Report:
    """The sharpness report of the runs: eigenvalues with bounds, trace with error bars, R_dir, and their cost.

    It gives no verdict between arms: raw Hessian numbers depend on the parametrisation, so they are read along one
    run.

    Args:
        runs: any runs, live, crashed and failed ones included.

    Returns:
        The report as data.
    """
    return Report(
        kind="sharpness",
        title="Sharpness",
        subtitle=runs_in_words(runs),
        findings=(
            bounds_met(runs),
            precise(runs, "trace", "the trace"),
            edge_below_one(runs),
            no_negative_curvature(runs),
        ),
        tables=(_run_table(runs), _arm_table(runs), _cost_table(runs)),
        figures=(loss_figure(runs), eigenvalue_figure(runs), edge_figure(runs), trace_figure(runs)),
        notes=(*ending_notes(runs), HESSIAN_NOTE, VERDICT_NOTE),
        missing=missing_curvature(runs),
        provenance=provenance(runs),
    )


def _run_table(runs: Sequence[Run]) -> Table:
    """A row per run at its last visit."""
    rows = tuple(_run_row(arm, run) for arm, members in by_arm(runs).items() for run in members)
    return Table("runs", "Each run at its last visit", _RUN_COLUMNS, rows, f"{HESSIAN_NOTE} {LOSS_NOTE}")


def _run_row(arm: str, run: Run) -> tuple[Cell, ...]:
    """One run at its last visit."""
    return (
        run.name,
        arm,
        last_visit(run),
        loss_at_last_visit(run),
        at_last_visit(run, "lambda_max"),
        at_last_visit(run, "lambda_min"),
        at_last_visit(run, "trace"),
        at_last_visit(run, "edge_ratio"),
    )


def _arm_table(runs: Sequence[Run]) -> Table:
    """A row per arm: median and range over its seeds."""
    rows = tuple(_arm_row(arm, members) for arm, members in by_arm(runs).items())
    title = "Each arm at its last visits: median [range over seeds]"
    return Table("arms", title, _ARM_COLUMNS, rows, f"{HESSIAN_NOTE} {SEEDS_NOTE}")


def _arm_row(arm: str, runs: Sequence[Run]) -> tuple[Cell, ...]:
    """One arm over its seeds."""
    return (
        arm,
        len(runs),
        median_and_range(loss_at_last_visit(run) for run in runs),
        median_and_range(at_last_visit(run, "lambda_max").value for run in runs),
        median_and_range(at_last_visit(run, "lambda_min").value for run in runs),
        median_and_range(at_last_visit(run, "trace").value for run in runs),
        widest_error([at_last_visit(run, "trace") for run in runs]),
        median_and_range(at_last_visit(run, "edge_ratio").value for run in runs),
    )


def _cost_table(runs: Sequence[Run]) -> Table:
    """What the measurements cost, a row per run."""
    costs = [(run, curvature_cost(run)) for run in runs]
    rows = tuple((run.name, cost.visits, cost.products, cost.seconds, overhead_percent(run)) for run, cost in costs)
    return Table("cost", "What it cost", _COST_COLUMNS, rows)
