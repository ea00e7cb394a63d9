"""Which layer's remainder was the first of a run to stand out, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.dynamics import LayerRecord
    from lossscope.landscape.run import Run

__all__ = ["layer_records", "layer_table"]

_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("looks", "looks", "", "steps at which the layers were looked at"),
    Column("judged", "judged", "", "of them, those with enough looks before"),
    Column("since", "from step"),
    Column("layer", "first to stand out", words=True),
    Column("step", "step"),
    Column("ratio", "over its threshold", "1", "its remainder over ten times its usual size"),
    Column("before", "loss before", "nats", "median of the batches' losses over 10 steps, up to that step's"),
    Column("after", "loss after", "nats", "the same over the 10 steps after it"),
    Column("rose", "rose", words=True),
)
_NOTE: Final = (
    "A layer stands out where its remainder, the part of the loss's change that its slope does not explain, is ten "
    "times its own usual size, the median over the 20 looks before; it is judged from its 11th look on. One that is "
    "far from its Taylor model all along does not stand out: read r1 and r2. Losses are of batches, so a small rise "
    "may be their noise, and what follows need not follow from it."
)


def layer_records(runs: Sequence[Run]) -> list[tuple[Run, LayerRecord]]:
    """The layers of the runs in which they were looked at."""
    looked = [run for run in runs if run.tensors["remainder"].notna().any()]
    if not looked:
        return []
    from lossscope.landscape.dynamics import layers_of

    return [(run, record) for run in looked if (record := layers_of(run)) is not None]


def layer_table(records: Sequence[tuple[Run, LayerRecord]]) -> tuple[Table, ...]:
    """A row for each run whose layers were looked at; nothing where none was."""
    rows = tuple(_row(run, record) for run, record in records)
    return (Table("layers", "The layer whose remainder stood out first", _COLUMNS, rows, _NOTE),) if rows else ()


def _row(run: Run, record: LayerRecord) -> tuple[Cell, ...]:
    """The layers of a run."""
    rose = None if record.rose is None else ("yes" if record.rose else "no")
    without = "none" if record.judged else "too few looks to tell"
    numbers = (number(record.ratio), number(record.loss_before), number(record.loss_after))
    seen = (record.looks, record.judged, record.since)
    return (run.name, *seen, record.layer or without, record.step, *numbers, rose)
