"""The list of runs in a folder, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lossscope.landscape.errors import RunError
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.loss_unit import LOSS, in_loss_unit
from lossscope.reports.shared.quantities import last_number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["Unreadable", "run_list"]

_COLUMNS: Final = (
    Column("name", "run", words=True),
    Column("arm", "arm", words=True),
    Column("status", "status", words=True),
    Column("steps", "steps", "", "last recorded optimizer step"),
    Column("loss", "last loss", LOSS, "training loss of the last step's batch"),
    Column("test_accuracy", "test accuracy", "1", "last measured fraction right on the test set"),
    Column("ends", "where it ends", words=True),
)


@dataclass(frozen=True)
class Unreadable:
    """A run that could not be opened."""

    path: Path
    why: str  # one line


def run_list(runs: Sequence[Run | Unreadable], folder: Path) -> Table:
    """A table with a row per run: arm, status, steps, last loss, test accuracy, and where it ends.

    Args:
        runs: the runs. One whose steps cannot be read keeps its row, with gaps; so does an unreadable one, and
            says why.
        folder: runs deeper inside it are named by their path from here.

    Returns:
        The table.
    """
    table = Table("runs", f"Runs in {folder}", _COLUMNS, tuple(_row(run, folder) for run in runs))
    (found,) = in_loss_unit([table], [run for run in runs if not isinstance(run, Unreadable)])
    return found


def _row(run: Run | Unreadable, folder: Path) -> tuple[Cell, ...]:
    """One run, or why there is none to be seen."""
    if isinstance(run, Unreadable):
        return (run.path.relative_to(folder).as_posix(), None, "unreadable", None, None, None, run.why)
    name = run.name if run.path == folder else run.path.relative_to(folder).as_posix()
    return (name, str(run.manifest.get("arm") or "") or None, run.status, *_progress(run), run.ends)


def _progress(run: Run) -> tuple[Cell, Cell, Cell]:
    """Last step, its loss, and the last test accuracy; gaps where the table of steps cannot be read."""
    try:
        steps = run.steps
    except RunError:  # `ends` says so
        return None, None, None
    last = int(steps["step"].max()) if len(steps) else None
    return last, last_number(steps, "loss"), last_number(steps, "test_accuracy")
