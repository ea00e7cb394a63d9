"""Bounds that no number of products meets, in words: the cause that the rows state, with a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lossscope.landscape.measures.catalogue import limit_of
from lossscope.landscape.measures.measure import WITHOUT_TOLERANCE
from lossscope.landscape.storage.missing_values import named

__all__ = ["REMEDY", "REMEDY_IN_DOUBLE", "Unreachable", "unreachable"]

REMEDY: Final = "measure in float64: give the Recorder, or `lossscope probe --objective`, objective.in_double()"
REMEDY_IN_DOUBLE: Final = "the products are in float64 already: ask for a larger relative bound"


@dataclass(frozen=True)
class Unreachable:
    """Measures that missed a requested bound for a cause other than the budget."""

    measures: tuple[str, ...]
    steps: tuple[int, ...]
    cause: str  # that of the last of them
    dtype: str  # of the products

    @property
    def remedy(self) -> str:
        """The way to a bound that is met."""
        return REMEDY_IN_DOUBLE if self.dtype == "float64" else REMEDY

    def __str__(self) -> str:
        count = len(self.steps)
        where = f"{count} evaluation{'s' * (count > 1)} ({'last: ' if count > 1 else ''}step {self.steps[-1]})"
        return f"{named(self.measures)} missed the requested bound at {where}: {self.cause}; {self.remedy}"


def unreachable(rows: Iterable[Mapping[Any, Any]]) -> Unreachable | None:
    """Return the measures whose bound more products would not meet, of those with a requested bound.

    Args:
        rows: Rows of the table `probes`, in any order.

    Returns:
        Their names, the steps, and the cause at the last step; None if there is none.
    """
    found = [
        row
        for row in rows
        if isinstance(row.get("cause"), str) and row["cause"] and limit_of(row["measure"]) not in WITHOUT_TOLERANCE
    ]
    if not found:
        return None
    last = max(found, key=lambda row: int(row["step"]))
    steps = sorted({int(row["step"]) for row in found})
    measures = tuple(dict.fromkeys(str(row["measure"]) for row in found))
    return Unreachable(measures, tuple(steps), last["cause"], str(last.get("dtype")))
