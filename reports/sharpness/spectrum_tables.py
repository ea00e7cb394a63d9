"""Tables of measures that not every run has: a row per run at the last step with any of them, a column per measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.series import by_arm
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.quantities import row_quantity

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["metric_table", "sampling_table", "spectrum_table"]

_RUN: Final = (Column("run", "run", words=True), Column("step", "step", "", "the last step that has these numbers"))
_EIGENVALUES: Final = tuple(Column(f"lambda_{k}", f"λ_{k} ± bound", "nats") for k in (2, 3, 4, 5))
_SPECTRUM: Final = (
    Column("frobenius", "‖H‖_F ± SE [95 %]", "nats", "root of the sum of squared eigenvalues"),
    Column("negative_mass", "negative mass", "1", "share of negative eigenvalues in Σ|λ|"),
    Column("effective_rank", "effective rank", "1", "exp of the entropy of the positive eigenvalues"),
    Column("participation_ratio", "participation ratio", "1", "(Σλ)²/Σλ² over the positive eigenvalues"),
)
_METRIC: Final = (
    Column("preconditioned_sharpness", "S_P ± bound", "1", "λ_max of P^-1/2 H P^-1/2, P the metric of the last step"),
    Column("preconditioned_edge_ratio", "S_P / threshold", "1", "1 is the edge of stability of the frozen optimizer"),
    Column("sharpness_edge_ratio", "λ_max / threshold", "1", "1 is the edge of stability of SGD at its settings"),
    Column("batch_sharpness", "batch sharpness", "nats", "mean over minibatches of g_B'H_B g_B / |g_B|²"),
    Column(
        "batch_sharpness_ratio_of_means", "its ratio of means", "nats", "mean of g_B'H_B g_B over the mean of |g_B|²"
    ),
)
_SAMPLING: Final = (
    Column("lambda_max_in_sample", "in-sample λ_max ± bound", "nats", "of these data: on average high"),
    Column("lambda_max_cross_fitted", "cross-fitted ± SE [95 %]", "nats", "v from one half, H from the other: low"),
    Column("lambda_max_population", "population ± SE [95 %]", "nats", "of what the data were drawn from"),
)
_SPECTRUM_NOTE: Final = (
    "Intervals of the last three run over random vectors and are widened by what the second half of the steps "
    "still changed."
)
_METRIC_NOTE: Final = (
    "Each ratio has a threshold of its own, and is 1 at the edge of stability; so is R_dir above. An optimizer without "
    "a known threshold (an orthogonalized step, an ascent) has R_dir alone. Between optimizers only ratios compare."
)
_SAMPLING_NOTE: Final = (
    "What other data would do to λ_max at fixed parameters. The in-sample value is biased upwards, the cross-fitted "
    "one downwards. On training data this is the error of resampling, not of the population that was not trained on."
)


def spectrum_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Eigenvalues below the largest, and what follows from the whole spectrum; nothing where no run has it."""
    return (
        *_measure_table(runs, "eigenvalues", "Eigenvalues below the largest", _EIGENVALUES, ""),
        *_measure_table(runs, "spectrum", "The whole spectrum", _SPECTRUM, _SPECTRUM_NOTE),
    )


def metric_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Sharpness as the optimizer sees it, with the edge ratios by name; nothing where no run has it."""
    return _measure_table(runs, "edges", "Against the optimizer's own thresholds", _METRIC, _METRIC_NOTE)


def sampling_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """The error of λ_max over samples of data; nothing where it was not measured."""
    return _measure_table(runs, "sampling_error", "What other data would do to λ_max", _SAMPLING, _SAMPLING_NOTE)


def _measure_table(
    runs: Sequence[Run], key: str, title: str, columns: Sequence[Column], note: str
) -> tuple[Table, ...]:
    """A table of the measures that are there."""
    found = [(run, *_last(run, [column.key for column in columns])) for arm in by_arm(runs).values() for run in arm]
    there = [(run, step, values) for run, step, values in found if values]
    kept = [column for column in columns if any(column.key in values for _, _, values in there)]
    if not there:
        return ()
    rows = tuple(
        (run.name, step, *(values.get(column.key, Quantity(None)) for column in kept)) for run, step, values in there
    )
    return (Table(key, f"{title}, at the last step that has it", (*_RUN, *kept), rows, note),)


def _last(run: Run, measures: Sequence[str]) -> tuple[Cell, dict[str, Quantity]]:
    """The last step with any of the measures of the whole model, and the measures there."""
    rows: pd.DataFrame = run.estimates[run.estimates["measure"].isin(measures) & run.estimates["tensor"].isna()]
    if not len(rows):
        return None, {}
    step = int(rows["step"].max())
    last = rows[rows["step"] == step].to_dict("records")
    return step, {str(row["measure"]): row_quantity({str(key): one for key, one in row.items()}) for row in last}
