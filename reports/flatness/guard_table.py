"""Table of the guard: the four numbers and raw λ_max after a random rescaling, over those before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.verdicts.verdict import RAW
from lossscope.reports.content import Column, Table
from lossscope.reports.flatness.four_numbers import FOUR, NAMES
from lossscope.reports.shared.measure_tables import measure_table

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["guard_table"]

_NOTE: Final = (
    "Each number after a random rescaling of neurons that keeps the function, over that before. A measure that "
    "depends on the function alone stays at 1 within its bounds; λ_max of the Hessian as it is does not, so it "
    "decides nothing."
)
_COLUMNS: Final = (
    *(Column(f"guard_{name}", NAMES[name], "1", "after over before") for name in FOUR),
    Column(f"guard_{RAW.measure}", "λ_max as it is", "1", "after over before: it moves"),
)


def guard_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the rows of the guard of each run, or of each arm of many runs; none if no run has any."""
    return measure_table(runs, "guard", "Guard", _COLUMNS, _NOTE)
