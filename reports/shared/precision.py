"""Notes on bounds that more products would not meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lossscope.landscape.measures.precision import unreachable

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["precision_notes"]


def precision_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return a note for each run with measures that missed their bound for a cause other than the budget."""
    found = [(run.name, unreachable(run.estimates.to_dict("records"))) for run in runs]
    return tuple(f"{name}: {one}." for name, one in found if one is not None)
