"""When a run first got somewhere, counted in optimizer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["first_step"]


def first_step(run: Run, column: str, level: float) -> int | None:
    """The first recorded step at which a column of the steps table is at least `level`; None if it never was.

    Grokking is told this way: `first_step(run, "test_accuracy", 0.99)`. It is known to the step only as
    finely as the column was measured.
    """
    steps = run.steps
    reached = steps.loc[steps[column] >= level, "step"]
    return int(reached.iloc[0]) if len(reached) else None
