"""Tables of curvature at the last evaluation: one row per run, and one row per arm over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from lossscope.landscape.analysis.arms import by_arm
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.loss_unit import LOSS
from lossscope.reports.shared.notes import LOSS_NOTE
from lossscope.reports.shared.quantities import (
    at_last_evaluation,
    last_evaluation,
    loss_with_rounding,
    seed_count,
    summarized,
    widest_error,
)

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = [
    "MOST_RUNS",
    "ArmCell",
    "arm_table",
    "of_run",
    "over_seeds",
    "repeated_seeds",
    "run_table",
    "widest_error_over_seeds",
]

RunCell: TypeAlias = Callable[["Run"], Cell]
ArmCell: TypeAlias = Callable[[Sequence["Run"]], Cell]

MOST_RUNS: Final = 12  # runs above which tables have a row for each arm in place of each run
_ARM: Final = Column("arm", "arm", words=True)
_LOSS: Final = Column("loss", "train loss", LOSS, LOSS_NOTE)
_STEP: Final = Column("step", "step", "", "optimizer step of the last curvature evaluation")
_RUN_COLUMNS: Final = (Column("run", "run", words=True), _ARM, _STEP, _LOSS)
_ARM_COLUMNS: Final = (_ARM, Column("seeds", "seeds"), _LOSS)


def run_table(runs: Sequence[Run], measured: Sequence[tuple[Column, RunCell]], note: str) -> Table:
    """Return a table with one row per run: run, arm, step and train loss of its last evaluation, then the measures.

    Args:
        runs: The runs; ordered by arm.
        measured: Further columns, each with a function that returns the cell of a run.
        note: Text below the table.

    Returns:
        The table; its key is `runs`.
    """
    rows = tuple(
        (run.name, arm, last_evaluation(run), loss_with_rounding(run), *(cell(run) for _, cell in measured))
        for arm, members in by_arm(runs).items()
        for run in members
    )
    return Table("runs", "Each run at its last evaluation", (*_RUN_COLUMNS, *(one for one, _ in measured)), rows, note)


def arm_table(runs: Sequence[Run], measured: Sequence[tuple[Column, ArmCell]], note: str) -> Table:
    """Return a table with one row per arm: arm, seeds, train loss, then the measures, as medians and ranges over seeds.

    Args:
        runs: The runs; grouped by arm.
        measured: Further columns, each with a function that returns the cell of an arm.
        note: Text below the table.

    Returns:
        The table; its key is `arms`.
    """
    loss = over_seeds(loss_with_rounding)
    rows = tuple(
        (arm, seed_count(members), loss(members), *(cell(members) for _, cell in measured))
        for arm, members in by_arm(runs).items()
    )
    title = "Each arm at its last evaluations: median [range over seeds]"
    note = " ".join([*repeated_seeds(runs), note])
    return Table("arms", title, (*_ARM_COLUMNS, *(one for one, _ in measured)), rows, note)


def repeated_seeds(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return a sentence for each arm with several runs of the same seeds."""
    arms = [(arm, len(members), seed_count(members)) for arm, members in by_arm(runs).items()]
    return tuple(
        f"{arm}: {count} runs of only {seeds} seed{'s' * (seeds > 1)}; its range understates that over {count} seeds."
        for arm, count, seeds in arms
        if seeds < count
    )


def of_run(measure: str) -> Callable[[Run], Quantity]:
    """Return a function from a run to the measure at its last evaluation, with its error."""
    return lambda run: at_last_evaluation(run, measure)


def over_seeds(value: str | Callable[[Run], Quantity]) -> ArmCell:
    """Return a function from runs to the median and range of a measure at their last evaluations, or of any value."""
    found = of_run(value) if isinstance(value, str) else value
    return lambda runs: summarized(map(found, runs))


def widest_error_over_seeds(measure: str) -> ArmCell:
    """Return a function from runs to the largest error of a measure among their last evaluations."""
    return lambda runs: widest_error([at_last_evaluation(run, measure) for run in runs])
