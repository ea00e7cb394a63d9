"""What a probe has added to a run, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossscope.landscape.curvature.catalogue import UNASKED, limit_of

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
    densities: tuple[dict[str, Any], ...]  # of the table `densities`, one row for each random vector
    absent: tuple[Absent, ...]
    seconds: float

    @property
    def whole_densities(self) -> tuple[dict[str, Any], ...]:
        """One row for each density."""
        return tuple({"measure": "density", "tensor": None, **row} for row in self.densities if row["probe"] == 0)

    @property
    def unmet(self) -> tuple[str, ...]:
        """The measures of which a number missed the bound that was asked of it."""
        missed = [row["measure"] for row in self.rows if row["converged"] is False]
        return tuple(name for name in dict.fromkeys(missed) if limit_of(name) not in UNASKED)
