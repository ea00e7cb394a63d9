"""Table of the runs in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.divergence import Divergence, divergence_of
from lossscope.landscape.errors import RunError
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.divergence import alert, in_words
from lossscope.reports.shared.loss_unit import LOSS, in_loss_unit
from lossscope.reports.shared.quantities import last_present

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["Unreadable", "run_alert", "run_list"]

_COLUMNS: Final = (
    Column("name", "run", words=True),
    Column("arm", "arm", words=True),
    Column("status", "status", words=True),
    Column("steps", "steps", "", "last recorded optimizer step"),
    Column("loss", "last loss", LOSS, "training loss on the batch of the last step"),
    Column("test_accuracy", "test accuracy", "1", "last measured accuracy on the test set"),
    Column("ends", "end of recording", words=True),
)


@dataclass(frozen=True)
class Unreadable:
    """A run that cannot be opened, with the reason in one line."""

    path: Path
    why: str


def run_alert(runs: Sequence[Run | Unreadable], folder: Path) -> str:
    """Return the first line of a list of runs: which of them diverged, and at which step; "" if none did.

    Args:
        runs: The runs; one with unreadable steps is left out.
        folder: The folder that contains them.
    """
    found = [(run, _divergence(run)) for run in runs if not isinstance(run, Unreadable)]
    return alert([(_name(run, folder), one) for run, one in found if one is not None])


def run_list(runs: Sequence[Run | Unreadable], folder: Path) -> Table:
    """Return a table with one row per run: arm, status, steps, last loss, test accuracy, and end of recording.

    Args:
        runs: The runs. A run with unreadable steps has missing values in its row; an unreadable run has the reason.
        folder: The folder that contains them; runs are named by their path relative to it.

    Returns:
        The table.
    """
    table = Table("runs", f"Runs in {folder}", _COLUMNS, tuple(_row(run, folder) for run in runs))
    (found,) = in_loss_unit([table], [run for run in runs if not isinstance(run, Unreadable)])
    return found


def _row(run: Run | Unreadable, folder: Path) -> tuple[Cell, ...]:
    """Return the row of one run, or of an unreadable one."""
    if isinstance(run, Unreadable):
        return (run.path.relative_to(folder).as_posix(), None, "unreadable", None, None, None, run.why)
    progress, diverged = _progress(run), _divergence(run)  # the first reads all that the second needs
    ends = run.ends if diverged is None else f"Diverged: {in_words(diverged)}. {run.ends}"
    run.forget()
    return (_name(run, folder), str(run.manifest.get("arm") or "") or None, run.status, *progress, ends)


def _name(run: Run, folder: Path) -> str:
    """Return the name of a run: its path relative to the folder."""
    return run.name if run.path == folder else run.path.relative_to(folder).as_posix()


def _divergence(run: Run) -> Divergence | None:
    """Return the divergence of a run; None if its table of steps cannot be read."""
    try:
        return divergence_of(run)
    except RunError:  # `ends` states the reason
        return None


def _progress(run: Run) -> tuple[Cell, Cell, Cell]:
    """Return the last step, its loss, and the last test accuracy; None if the table of steps cannot be read."""
    try:
        steps, losses, accuracies = run.numbers("steps", "step", "loss", "test_accuracy")
    except RunError:  # `ends` states the reason
        return None, None, None
    return int(steps[-1]) if len(steps) else None, last_present(losses), last_present(accuracies)
