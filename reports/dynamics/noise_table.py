"""The gradient noise scale of runs, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Cell, Column, Missing, Quantity, Table
from lossscope.reports.shared.quantities import run_quantity

if TYPE_CHECKING:
    from lossscope.landscape.dynamics import NoiseRecord, NoiseScale
    from lossscope.landscape.run import Run

__all__ = ["missing_noise", "noise_records", "noise_table"]

_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("windows", "windows"),
    Column("samples", "minibatch", "samples", "the other batch is twice as large"),
    Column("scale", "noise scale [95 %]", "samples", "tr Σ / ‖g‖², all windows: a gap where ‖g‖² is not above 0"),
    Column("late", "in the second half [95 %]", "samples", "of the run's steps"),
    Column("signal", "‖g‖² [95 %]", "nats²", "squared norm of the mean gradient; below 0 by chance"),
    Column("noise", "tr Σ [95 %]", "nats²", "variance of one sample's gradient, all parameters"),
)
_NOTE: Final = (
    "The batch at which noise is as large as signal. It usually grows in training, so that one number for a whole run "
    "is a mean over many. Where the signal may be 0 the scale has no upper end; fewer than five windows give no "
    "interval."
)


def noise_records(runs: Sequence[Run]) -> list[tuple[Run, NoiseRecord]]:
    """The noise scales of the runs that were looked at with minibatches."""
    if not any(len(run.pairs) for run in runs):
        return []
    from lossscope.landscape.dynamics import noise_of

    return [(run, record) for run in runs if (record := noise_of(run)) is not None]


def noise_table(records: Sequence[tuple[Run, NoiseRecord]]) -> tuple[Table, ...]:
    """A row for each run; nothing where none has a noise scale."""
    rows = tuple(_row(run, record, record.whole) for run, record in records if record.whole is not None)
    return (Table("noise_scale", "Gradient noise scale", _COLUMNS, rows, _NOTE),) if rows else ()


def missing_noise(records: Sequence[tuple[Run, NoiseRecord]]) -> tuple[Missing, ...]:
    """The runs whose windows gave no noise scale, with the reason."""
    return tuple(
        Missing(f"The noise scale of {run.name}", f"{record.why[:1].upper()}{record.why[1:]}.")
        for run, record in records
        if record.whole is None
    )


def _row(run: Run, record: NoiseRecord, whole: NoiseScale) -> tuple[Cell, ...]:
    """The noise of a run."""
    return (
        run.name,
        record.windows,
        int(record.samples) if record.samples == int(record.samples) else record.samples,
        run_quantity(whole.scale),
        run_quantity(record.late.scale) if record.late else Quantity(None),
        run_quantity(whole.signal),
        run_quantity(whole.noise),
    )
