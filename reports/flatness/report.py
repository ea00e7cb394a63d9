"""Flatness report: the reparametrization-invariant measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.measures.catalogue import group_of
from lossscope.reports.content import Column, Missing, Quantity, Report
from lossscope.reports.first_screen.screen import with_first_screen
from lossscope.reports.flatness.noise_curve import noise_curve_figure
from lossscope.reports.shared.completed import completed
from lossscope.reports.shared.evaluation_tables import (
    MOST_RUNS,
    ArmCell,
    arm_table,
    of_run,
    over_seeds,
    run_table,
    widest_error_over_seeds,
)
from lossscope.reports.shared.figures import adaptive_trace_figure, loss_figure
from lossscope.reports.shared.findings import losses_matched, precise
from lossscope.reports.shared.loss_unit import LOSS, in_loss_unit
from lossscope.reports.shared.measure_tables import measure_table, other_measures_table
from lossscope.reports.shared.norm_tables import norm_table, tensor_norm_table
from lossscope.reports.shared.notes import ADAPTIVE_NOTE, LOSS_NOTE, SEEDS_NOTE
from lossscope.reports.shared.precision import precision_notes
from lossscope.reports.shared.provenance import ending_notes, missing_curvature, provenance, runs_in_words
from lossscope.reports.shared.quantities import last_number
from lossscope.reports.shared.trajectory import trajectory_tables

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["flatness"]

_NO_COMPARISON: Final = (
    "Arms are not compared here: the evaluations are at equal steps, not at matched train loss. A comparison takes "
    "four measures (adaptive λ_max, adaptive trace, λ_max and trace at the balanced point) and 6 paired seeds or more."
)
_BEFORE: Final = {"adaptive_trace"}  # recorded by earlier versions too, which had no other of its group
_GROUPS: Final = {
    "adaptive": "Adaptive λ_max",
    "balanced": "λ_max and trace at the balanced point",
    "basin": "Basin radius σ* and noise curve",
    "guard": "Guard: the same numbers after a random rescaling",
}
_GUARD_NOTE: Final = (
    "Each number after a random rescaling of neurons that keeps the function, over that before. A measure that "
    "depends on the function alone stays at 1 within its bounds; λ_max of the Hessian as it is does not, so it "
    "decides nothing."
)
_PANEL_NOTE: Final = (
    "At the balanced point every neuron has incoming and outgoing weights of one norm, so that no rescaling is left. "
    "σ* is the relative noise on every weight at which the mean loss has risen by 0.1: larger is flatter."
)
_NORM: Final = Column("weight_norm", "‖θ‖", "1", "norm of all parameters at the last recorded step")


_TRAJECTORY: Final = (
    ("loss", "train loss", LOSS),
    ("adaptive_lambda_max", "adaptive λ_max", LOSS),
    ("adaptive_trace", "adaptive trace", LOSS),
    ("balanced_lambda_max", "balanced λ_max", LOSS),
    ("balanced_trace", "balanced trace", LOSS),
)


@np.errstate(all="ignore")  # numbers of a diverged run overflow; what is not finite is shown as missing
def flatness(runs: Sequence[Run]) -> Report:
    """Return the flatness report: the measures that depend on the function alone, and the guard that shows it.

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
                *([run_table(runs, _RUN_CELLS, f"{ADAPTIVE_NOTE} {LOSS_NOTE}")] if len(runs) <= MOST_RUNS else []),
                *trajectory_tables(runs, _TRAJECTORY),
                arm_table(runs, _arm_cells(runs), SEEDS_NOTE),
                *measure_table(runs, "panel", "Curvature of the function and basin", _PANEL, _PANEL_NOTE),
                *measure_table(runs, "guard", "Guard", _GUARD, _GUARD_NOTE),
                *norm_table(runs),
                *tensor_norm_table(runs),
                *other_measures_table(runs, "flatness"),
            ),
            runs,
        ),
        figures=(adaptive_trace_figure(runs), *noise_curve_figure(runs), loss_figure(runs)),
        notes=(*ending_notes(runs), *precision_notes(runs), _NO_COMPARISON, ADAPTIVE_NOTE),
        missing=(*missing_curvature(runs), *_not_measured(runs)),
        provenance=provenance(runs),
    )
    return with_first_screen(completed(report, runs), runs)


def _arm_cells(runs: Sequence[Run]) -> tuple[tuple[Column, ArmCell], ...]:
    """Return the columns of the arms; of the panel those that a run has."""
    there = {str(name) for run in runs for name in run.probes["measure"].unique()}
    panel = ((replace(column, meaning=""), over_seeds(column.key)) for column in _PANEL if column.key in there)
    return (*_ARM_CELLS, *panel)


def _not_measured(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """Return an entry for each group of the panel that no run has, with the command that measures it."""
    there = {group_of(str(name)) for run in runs for name in run.probes["measure"].unique() if name not in _BEFORE}
    return tuple(
        Missing(what, f"Measure a checkpoint: lossscope probe RUN --measures {group}")
        for group, what in _GROUPS.items()
        if group not in there
    )


def _weight_norm(run: Run) -> Quantity:
    """Return the norm of all parameters at the last step with a value."""
    return Quantity(last_number(run, "weight_norm"))


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
_PANEL: Final = (
    Column("adaptive_lambda_max", "adaptive λ_max", LOSS, "largest eigenvalue of diag(θ) H diag(θ)"),
    Column("balanced_lambda_max", "balanced λ_max", LOSS, "largest eigenvalue of H at the balanced point"),
    Column("balanced_trace", "balanced trace", LOSS, "trace of H at the balanced point"),
    Column("sigma_star", "σ*", "1", "relative noise at which the mean loss has risen by 0.1"),
)
_GUARD: Final = (
    Column("guard_adaptive_lambda_max", "adaptive λ_max", "1", "after over before"),
    Column("guard_adaptive_trace", "adaptive trace", "1", "after over before"),
    Column("guard_balanced_lambda_max", "balanced λ_max", "1", "after over before"),
    Column("guard_balanced_trace", "balanced trace", "1", "after over before"),
    Column("guard_lambda_max", "λ_max as it is", "1", "after over before: it moves"),
)
_ARM_CELLS: Final = (
    (_NORM, over_seeds(_weight_norm)),
    (Column("adaptive_trace", "adaptive trace", LOSS), over_seeds("adaptive_trace")),
    (Column("adaptive_trace_error", "largest SE", LOSS), widest_error_over_seeds("adaptive_trace")),
    (Column("log_fisher_rao", "log Fisher-Rao", "1"), over_seeds("log_fisher_rao")),
    (Column("theta_hessian_theta", "θᵀHθ", LOSS), over_seeds("theta_hessian_theta")),
)
