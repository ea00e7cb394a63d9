"""Unit of the loss, in which curvature is measured too.

Columns declare the symbolic unit `LOSS`; a report replaces it by the unit of its runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Table

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["LOSS", "LOSS_SQUARED", "in_loss_unit", "loss_unit"]

LOSS: Final = "loss"
LOSS_SQUARED: Final = "loss²"


def loss_unit(runs: Sequence[Run]) -> str:
    """Return the unit of the runs' losses: "nats", another unit, "" if unknown, or "loss" if the runs differ."""
    units = {run.loss_unit for run in runs}
    return units.pop() if len(units) == 1 else LOSS


def in_loss_unit(tables: Iterable[Table], runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the tables with the symbolic units `LOSS` and `LOSS_SQUARED` replaced by the unit of the runs' losses.

    Args:
        tables: Tables of one report.
        runs: The runs of that report.

    Returns:
        The same tables. If the unit is unknown, these columns have no unit.
    """
    unit = loss_unit(runs)
    units = {LOSS: unit, LOSS_SQUARED: f"{unit}²" if unit else ""}
    return tuple(
        replace(table, columns=tuple(replace(one, unit=units.get(one.unit, one.unit)) for one in table.columns))
        for table in tables
    )
