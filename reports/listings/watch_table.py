"""Table of runs that are watched: status, step, and loss and sharpness over the run as bars that keep single peaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.series import FloatArray, probe_series, step_series
from lossscope.landscape.errors import RunError
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.loss_unit import LOSS, in_loss_unit
from lossscope.reports.shared.quantities import at_last_evaluation, number
from lossscope.reports.shared.trajectory import bars

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["watch_table"]

_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("status", "status", words=True),
    Column("step", "step"),
    Column("losses", "loss over the run", words=True),
    Column("loss", "last loss", LOSS),
    Column("sharpness", "λ_max over the run", words=True),
    Column("lambda_max", "last λ_max ± bound", LOSS),
)


@np.errstate(all="ignore")  # numbers of a diverged run overflow
def watch_table(runs: Sequence[Run]) -> Table:
    """Return a table with a row per run: status, last step, bars of loss and λ_max, and their last values.

    Args:
        runs: The runs; one whose tables cannot be read has its reason for its status.
    """
    table = Table("watch", f"{len(runs)} run{'' if len(runs) == 1 else 's'}", _COLUMNS, tuple(map(_row, runs)))
    (found,) = in_loss_unit([table], runs)
    return found


def _row(run: Run) -> tuple[Cell, ...]:
    """Return the row of one run."""
    try:
        losses = step_series(run, "loss").y
        steps = run.columns("steps", "step")["step"]
        top = probe_series(run, "lambda_max").y
        last = int(steps.max()) if len(steps) else None
        ends = (bars(losses), _last(losses), bars(top))
        return (run.name, run.status, last, *ends, at_last_evaluation(run, "lambda_max"))
    except RunError as error:
        return (run.name, " ".join(str(error).split()), None, "", None, "", Quantity(None))


def _last(values: FloatArray) -> float | None:
    """Return the last number; None if it is missing or not finite."""
    return number(float(values[-1])) if len(values) else None
