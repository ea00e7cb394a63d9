"""What a probe has added to a run, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Absent", "Probed"]


@dataclass(frozen=True)
class Absent:
    """Measures that were asked for and of which a checkpoint has no number."""

    step: int
    measures: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Probed:
    """The rows that a probe wrote, and what is missing."""

    run: Path
    steps: tuple[int, ...]  # of the checkpoints
    rows: tuple[dict[str, Any], ...]  # of the table `probes`, in the order in which they were measured
    densities: int  # densities in the table of that name
    absent: tuple[Absent, ...]
    seconds: float

    @property
    def unmet(self) -> tuple[str, ...]:
        """The measures of which a number missed its bound."""
        return tuple(dict.fromkeys(row["measure"] for row in self.rows if row["converged"] is False))
