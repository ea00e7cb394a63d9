"""Table of spectra by matrix: entropy beside white noise, stable ranks, and the defect of orthogonality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.layer_spectra import LayerSpectra, layer_spectra
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["spectra_by_layer_table"]

_BEFORE: Final = ("source", "whitened")
_ORDER: Final = ("weight", *_BEFORE, "gradient", "orthogonal")  # where the names and nulls of matrices come from
_CELLS: Final = (  # column of the table, objects, column of spectra
    (
        Column(
            "before",
            "entropy before",
            "1",
            "energy entropy over ln r of A, or of what Newton-Schulz takes in its place",
        ),
        _BEFORE,
        "entropy_energy",
    ),
    (Column("after", "after", "1", "the same after Newton-Schulz"), ("orthogonal",), "entropy_energy"),
    (Column("rank_before", "stable rank before", "1", "‖A‖_F² / ‖A‖_2²"), _BEFORE, "stable_rank"),
    (Column("rank_after", "after", "1", "‖O‖_F² / ‖O‖_2²"), ("orthogonal",), "stable_rank"),
    (Column("rank_weight", "of W", "1", "‖W‖_F² / ‖W‖_2²"), ("weight",), "stable_rank"),
    (
        Column("rank_movement", "of W − W0", "1", "of the weight minus that before the first step"),
        ("movement",),
        "stable_rank",
    ),
    (
        Column("defect", "defect of O", "1", "‖OOᵀ − I‖_F/√r after scaling: 0 for an orthogonal O"),
        ("orthogonal",),
        "orthogonality_defect",
    ),
)
_HEAD: Final = (
    Column("arm", "arm", words=True),
    Column("matrix", "matrix", words=True),
    Column("noise", "noise", "1", "energy entropy over ln r of white noise of this shape"),
)
_NOTE: Final = (
    "An entropy before Newton-Schulz below that of noise is order that a random matrix of this shape has not; the one "
    "after it is high by construction. W − W0 needs a run that was recorded from its first step on, without resuming."
)
_MOST: Final = 40


def spectra_by_layer_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the last numbers of each matrix of each arm, medians over seeds; empty if there are no spectra."""
    rows = [row for arm, members in by_arm(runs).items() for row in _of_arm(arm, members)]
    columns = [column for column, _, _ in _CELLS]
    kept = [place for place in range(len(_CELLS)) if any(row[len(_HEAD) + place] is not None for row in rows)]
    more = f" {len(rows) - _MOST} more rows are not listed." if len(rows) > _MOST else ""
    cells = tuple((*row[: len(_HEAD)], *(row[len(_HEAD) + place] for place in kept)) for row in rows[:_MOST])
    title = "Every matrix, last values: median over seeds"
    table = Table("matrices", title, (*_HEAD, *(columns[place] for place in kept)), cells, f"{_NOTE}{more}")
    return (table,) if rows else ()


def _of_arm(arm: str, runs: Sequence[Run]) -> list[tuple[Cell, ...]]:
    """Return the rows of an arm."""
    every = layer_spectra(runs, _ORDER, "stable_rank")
    found = [layer_spectra(runs, objects, column, like=every) for _, objects, column in _CELLS]
    return [
        (arm, name, number(float(every.null[row])), *(_last(one, row) for one in found))
        for row, name in enumerate(every.names)
    ]


def _last(found: LayerSpectra, row: int) -> float | None:
    """Return the last value of a matrix; None if it has none."""
    there = np.flatnonzero(np.isfinite(found.values[row]))
    return number(float(found.values[row, there[-1]])) if len(there) else None
