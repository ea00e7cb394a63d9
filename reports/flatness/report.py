"""Flatness report: the reparametrization-invariant measures available so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.reports.content import Column, Missing, Report
from lossscope.reports.shared.completed import completed
from lossscope.reports.shared.evaluation_tables import arm_table, of_run, over_seeds, run_table, widest_error_over_seeds
from lossscope.reports.shared.figures import adaptive_trace_figure, loss_figure
from lossscope.reports.shared.findings import losses_matched, precise
from lossscope.reports.shared.loss_unit import LOSS, in_loss_unit
from lossscope.reports.shared.measure_tables import other_measures_table
from lossscope.reports.shared.norm_tables import norm_table, tensor_norm_table
from lossscope.reports.shared.notes import ADAPTIVE_NOTE, LOSS_NOTE, SEEDS_NOTE
from lossscope.reports.shared.precision import precision_notes
from lossscope.reports.shared.provenance import ending_notes, missing_curvature, provenance, runs_in_words
from lossscope.reports.shared.quantities import last_number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["flatness"]

_NO_COMPARISON: Final = (
    "Arms are not compared: the evaluations are at equal steps, not at matched train loss; a comparison requires four "
    "measures, of which two are available, and at least 6 paired seeds."
)
_NOT_HERE: Final = (
    Missing("Logit-normalized worst-case adaptive sharpness", "Not available in this version."),
    Missing("Relative flatness", "Not available in this version."),
    Missing("Sigma at a target loss, multiplicative", "Not available in this version."),
)
_NORM: Final = Column("weight_norm", "‖θ‖", "1", "norm of all parameters at the last recorded step")


@np.errstate(all="ignore")  # numbers of a diverged run overflow; what is not finite is shown as missing
def flatness(runs: Sequence[Run]) -> Report:
    """Return the flatness report: adaptive trace and log Fisher-Rao norm, and the measures not yet available.

    Args:
        runs: Any runs; live, crashed and failed runs are allowed.

    Returns:
        The report as data. It does not compare arms and states why.
    """
    report = Report(
        kind="flatness",
        title="Flatness",
        subtitle=runs_in_words(runs),
        findings=(precise(runs, "adaptive_trace", "the adaptive trace"), losses_matched(runs)),
        tables=in_loss_unit(
            (
                run_table(runs, _RUN_CELLS, f"{ADAPTIVE_NOTE} {LOSS_NOTE}"),
                arm_table(runs, _ARM_CELLS, SEEDS_NOTE),
                *norm_table(runs),
                *tensor_norm_table(runs),
                *other_measures_table(runs, "flatness"),
            ),
            runs,
        ),
        figures=(adaptive_trace_figure(runs), loss_figure(runs)),
        notes=(*ending_notes(runs), *precision_notes(runs), _NO_COMPARISON, ADAPTIVE_NOTE),
        missing=(*missing_curvature(runs), *_NOT_HERE),
        provenance=provenance(runs),
    )
    return completed(report, runs)


def _weight_norm(run: Run) -> float | None:
    """Return the norm of all parameters at the last step with a value."""
    return last_number(run.steps, "weight_norm")


_RUN_CELLS: Final = (
    (_NORM, _weight_norm),
    (Column("adaptive_trace", "adaptive trace ± SE [95 %]", LOSS, "Σ θ_i² H_ii"), of_run("adaptive_trace")),
    (
        Column("log_fisher_rao", "log Fisher-Rao", "1", "natural logarithm of the Fisher-Rao norm"),
        of_run("log_fisher_rao"),
    ),
    (
        Column("theta_hessian_theta", "θᵀHθ", LOSS, "curvature along a common scaling of all parameters"),
        of_run("theta_hessian_theta"),
    ),
)
_ARM_CELLS: Final = (
    (_NORM, over_seeds(_weight_norm)),
    (Column("adaptive_trace", "adaptive trace", LOSS), over_seeds("adaptive_trace")),
    (Column("adaptive_trace_error", "largest SE", LOSS), widest_error_over_seeds("adaptive_trace")),
    (Column("log_fisher_rao", "log Fisher-Rao", "1"), over_seeds("log_fisher_rao")),
    (Column("theta_hessian_theta", "θᵀHθ", LOSS), over_seeds("theta_hessian_theta")),
)
