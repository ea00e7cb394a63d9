"""Tables of spectra, stability thresholds and sampling error, for the runs that have these measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Column, Table
from lossscope.reports.shared.loss_unit import LOSS
from lossscope.reports.shared.measure_tables import measure_table

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["critical_table", "metric_table", "sampling_table", "spectrum_table"]

_EIGENVALUES: Final = tuple(Column(f"lambda_{k}", f"λ_{k} ± bound", LOSS) for k in (2, 3, 4, 5))
_SPECTRUM: Final = (
    Column("frobenius", "‖H‖_F ± SE [95 %]", LOSS, "root of the sum of squared eigenvalues"),
    Column("negative_mass", "negative mass", "1", "share of negative eigenvalues in Σ|λ|"),
    Column("effective_rank", "effective rank", "1", "exp of the entropy of the positive eigenvalues"),
    Column("participation_ratio", "participation ratio", "1", "(Σλ)²/Σλ² over the positive eigenvalues"),
)
_METRIC: Final = (
    Column("preconditioned_sharpness", "S_P ± bound", "1", "λ_max of P^-1/2 H P^-1/2, P the metric of the last step"),
    Column(
        "preconditioned_edge_ratio",
        "S_P / threshold",
        "1",
        "1 is the edge of stability on all data",
    ),
    Column("sharpness_edge_ratio", "λ_max / threshold", "1", "1 is the edge of stability of SGD on all data"),
    Column("batch_sharpness", "batch sharpness", LOSS, "mean over minibatches of g_B'H_B g_B / |g_B|²"),
    Column("batch_sharpness_ratio_of_means", "its ratio of means", LOSS, "mean of g_B'H_B g_B over the mean of |g_B|²"),
)
_CRITICAL: Final = (
    Column("critical_step", "critical step ± bracket", "1", "multiple of the step at which the loss is back"),
    Column("critical_learning_rate", "critical lr ± bracket", "1", "learning rate at which the loss is back"),
    Column("critical_sharpness", "λ_c ± bracket", "1", "2 / critical lr"),
    Column("lambda_dir", "λ_dir ± rounding", "1", "directional sharpness dᵀHd / (gᵀd) of the update d"),
    Column("critical_ratio", "λ_c / λ_dir", "1", "1 where the loss is quadratic along the step"),
)
_SAMPLING: Final = (
    Column("lambda_max_in_sample", "in-sample λ_max ± bound", LOSS, "on these data: biased upwards"),
    Column(
        "lambda_max_cross_fitted",
        "cross-fitted ± SE [95 %]",
        LOSS,
        "v from one half, H from the other: biased downwards",
    ),
    Column(
        "lambda_max_population",
        "population ± SE [95 %]",
        LOSS,
        "λ_max of the population that the data were drawn from",
    ),
)
_SPECTRUM_NOTE: Final = (
    "Intervals of the last three are over random vectors, widened by the change since half of the Krylov steps."
)
_METRIC_NOTE: Final = (
    "Each ratio has its own threshold and is 1 at the edge of stability, as is the directional edge ratio above. An "
    "optimizer without a known threshold (orthogonalized or two-pass steps) has the directional edge ratio only. "
    "Compare only ratios between optimizers."
)
_CRITICAL_NOTE: Final = (
    "Would the step raise the loss, and by what margin: on the fixed data, along the step that was taken, the loss is "
    "back at its value before the step at this multiple of it. Below 1 the step raised the loss; at 3 a learning rate "
    "up to three times as large would have lowered it. It is a number of one finite step, bracketed by losses alone; "
    "it estimates no eigenvalue and is no stability threshold. Without a crossing it is missing, with the reason."
)
_SAMPLING_NOTE: Final = (
    "Sampling error of λ_max over data at fixed parameters. The in-sample value is biased upwards, the cross-fitted "
    "one downwards. On training data this is the error of resampling, not of the population that was not trained on."
)


def spectrum_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the tables of inner eigenvalues and of the whole spectrum; none if no run has them."""
    return (
        *measure_table(runs, "eigenvalues", "Eigenvalues below the largest", _EIGENVALUES, ""),
        *measure_table(runs, "spectrum", "Whole spectrum", _SPECTRUM, _SPECTRUM_NOTE),
    )


def metric_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the table of sharpness against stability thresholds, with batch sharpness; none if no run has any."""
    return measure_table(runs, "edges", "Sharpness against the optimizer's stability thresholds", _METRIC, _METRIC_NOTE)


def critical_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the table of critical learning rates of the steps taken; none if no run has any."""
    return measure_table(runs, "critical", "Critical learning rate of the step taken", _CRITICAL, _CRITICAL_NOTE)


def sampling_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the table of the sampling error of λ_max; none if no run has it."""
    return measure_table(runs, "sampling_error", "Sampling error of λ_max", _SAMPLING, _SAMPLING_NOTE)
