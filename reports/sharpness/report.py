"""Sharpness report: Hessian spectra, edge ratios, blocks, other libraries' values, and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.reports.content import Column, Report
from lossscope.reports.figure_content import FigureData
from lossscope.reports.first_screen.screen import with_first_screen
from lossscope.reports.shared.completed import completed
from lossscope.reports.shared.cost_tables import cost_table, overhead_table
from lossscope.reports.shared.evaluation_tables import (
    MOST_RUNS,
    arm_table,
    of_run,
    over_seeds,
    run_table,
    widest_error_over_seeds,
)
from lossscope.reports.shared.figures import (
    edge_figure,
    loss_figure,
    trace_figure,
)
from lossscope.reports.shared.findings import all_bounds_met, bounds_met, edge_below_one, no_negative_curvature, precise
from lossscope.reports.shared.loss_unit import LOSS, in_loss_unit
from lossscope.reports.shared.measure_tables import other_measures_table
from lossscope.reports.shared.norm_tables import norm_table
from lossscope.reports.shared.notes import ENDS_NOTE, HESSIAN_NOTE, LOSS_NOTE, SEEDS_NOTE, VERDICT_NOTE
from lossscope.reports.shared.precision import precision_notes
from lossscope.reports.shared.provenance import ending_notes, missing_curvature, provenance, runs_in_words
from lossscope.reports.shared.threshold_figures import eigenvalue_figure, threshold_figures
from lossscope.reports.shared.trajectory import trajectory_tables
from lossscope.reports.sharpness.block_table import module_table
from lossscope.reports.sharpness.density_figure import density_figure
from lossscope.reports.sharpness.density_map import density_maps
from lossscope.reports.sharpness.second_opinion_table import opinion_table
from lossscope.reports.sharpness.spectrum_tables import critical_table, metric_table, sampling_table, spectrum_table

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["sharpness"]

_RUN_CELLS: Final = (
    (
        Column("lambda_max", "λ_max ± bound", LOSS, "largest Ritz value; no known eigenvalue is above value + bound"),
        of_run("lambda_max"),
    ),
    (
        Column("lambda_min", "λ_min ± bound", LOSS, "smallest Ritz value; no known eigenvalue is below value - bound"),
        of_run("lambda_min"),
    ),
    (
        Column("trace", "trace ± SE [95 %]", LOSS, "estimate, standard error, 95 % interval over random vectors"),
        of_run("trace"),
    ),
    (
        Column(
            "directional_edge_ratio", "edge ratio", "1", "directional edge ratio η dᵀHd / (2 gᵀd) of the step taken"
        ),
        of_run("directional_edge_ratio"),
    ),
)
_ARM_CELLS: Final = (
    (Column("lambda_max", "λ_max", LOSS), over_seeds("lambda_max")),
    (Column("lambda_min", "λ_min", LOSS), over_seeds("lambda_min")),
    (Column("trace", "trace", LOSS), over_seeds("trace")),
    (
        Column("trace_error", "largest SE", LOSS, "largest standard error of the trace among the seeds"),
        widest_error_over_seeds("trace"),
    ),
    (
        Column("directional_edge_ratio", "edge ratio", "1", "directional edge ratio of the step taken"),
        over_seeds("directional_edge_ratio"),
    ),
)


_TRAJECTORY: Final = (
    ("loss", "train loss", LOSS),
    ("lambda_max", "λ_max", LOSS),
    ("lambda_min", "λ_min", LOSS),
    ("trace", "trace", LOSS),
    ("preconditioned_edge_ratio", "S_P / threshold", "1"),
    ("sharpness_edge_ratio", "λ_max / threshold", "1"),
    ("directional_edge_ratio", "directional edge ratio", "1"),
)


@np.errstate(all="ignore")  # numbers of a diverged run overflow; what is not finite is shown as missing
def sharpness(runs: Sequence[Run]) -> Report:
    """Return the sharpness report: spectra with bounds, edge ratios, results of `lossscope probe`, and their cost.

    It does not rank arms: raw Hessian values depend on the parametrization and are comparable along one run only.

    Args:
        runs: Any runs; live, crashed and failed runs are allowed.

    Returns:
        The report as data.
    """
    report = Report(
        kind="sharpness",
        title="Sharpness",
        subtitle=runs_in_words(runs),
        findings=(
            bounds_met(runs),
            all_bounds_met(runs),
            precise(runs, "trace", "the trace"),
            edge_below_one(runs),
            no_negative_curvature(runs),
        ),
        tables=in_loss_unit(
            (
                *(
                    [run_table(runs, _RUN_CELLS, f"{ENDS_NOTE} {HESSIAN_NOTE} {LOSS_NOTE}")]
                    if len(runs) <= MOST_RUNS
                    else []
                ),
                *trajectory_tables(runs, _TRAJECTORY),
                arm_table(runs, _ARM_CELLS, f"{HESSIAN_NOTE} {SEEDS_NOTE}"),
                *norm_table(runs),
                *metric_table(runs),
                *critical_table(runs),
                *spectrum_table(runs),
                *module_table(runs),
                *sampling_table(runs),
                *other_measures_table(runs, "sharpness"),
                *opinion_table(runs),
                cost_table(runs),
                *overhead_table(runs),
            ),
            runs,
        ),
        figures=_figures(runs),
        notes=(*ending_notes(runs), *precision_notes(runs), HESSIAN_NOTE, VERDICT_NOTE),
        missing=missing_curvature(runs),
        provenance=provenance(runs),
    )
    return with_first_screen(completed(report, runs), runs)


def _figures(runs: Sequence[Run]) -> tuple[FigureData, ...]:
    """Return the figures; those of densities and thresholds only if a run has them."""
    density = density_figure(runs)
    return (
        loss_figure(runs),
        eigenvalue_figure(runs),
        edge_figure(runs),
        *threshold_figures(runs),
        trace_figure(runs),
        *([density] if density.spectra else []),
        *density_maps(runs),
    )
