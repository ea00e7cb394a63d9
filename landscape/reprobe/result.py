"""Result of probing a run: the rows written, and the measures that are missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossscope.landscape.measures.catalogue import limit_of
from lossscope.landscape.measures.measure import WITHOUT_TOLERANCE

__all__ = ["Absent", "Probed"]


@dataclass(frozen=True)
class Absent:
    """Requested measures that are unavailable at a checkpoint, with the reason."""

    step: int
    measures: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Probed:
    """Rows that a probe wrote, and missing measures."""

    run: Path
    steps: tuple[int, ...]  # steps of the checkpoints
    rows: tuple[dict[str, Any], ...]  # rows of the table `probes`, in the order in which they were measured
    densities: tuple[dict[str, Any], ...]  # rows of the table `densities`, one for each random vector
    curves: tuple[dict[str, Any], ...]  # rows of the table `curves`
    absent: tuple[Absent, ...]
    seconds: float
    notes: tuple[str, ...] = ()  # sentences about the rows that a reader of them needs

    @property
    def whole_densities(self) -> tuple[dict[str, Any], ...]:
        """One row for each density."""
        return tuple({"measure": "density", "tensor": None, **row} for row in self.densities if row["probe"] == 0)

    @property
    def tabled(self) -> tuple[dict[str, Any], ...]:
        """One row for each density and each curve."""
        return (*self.whole_densities, *({"tensor": None, "engine": "lossscope", **row} for row in self.curves))

    @property
    def unmet(self) -> tuple[str, ...]:
        """Measures with a value that missed its requested error bound."""
        missed = [row["measure"] for row in self.rows if row["converged"] is False]
        return tuple(name for name in dict.fromkeys(missed) if limit_of(name) not in WITHOUT_TOLERANCE)
