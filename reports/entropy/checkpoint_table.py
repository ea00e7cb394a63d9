"""Entropies and ranks of the weights at each checkpoint of runs that were measured from checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.quantities import mean_and_range

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["checkpoint_table"]

_VALUES: Final = ("norm", "entropy_energy", "stable_rank", "effective_rank")
_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("step", "step"),
    Column("matrices", "matrices", "", "number of spectra"),
    Column("norm", "‖W‖_F", "", "Frobenius norm"),
    Column("entropy_energy", "energy entropy", "1", "entropy of s²/Σs² over ln r"),
    Column("stable_rank", "stable rank", "1", "‖W‖_F² / ‖W‖_2²"),
    Column("effective_rank", "effective rank", "1", "exp of the unnormalized nuclear entropy"),
)


def checkpoint_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the table; none for recorded runs, whose spectra are sampled too often for one."""
    rows = tuple(row for run in runs if run.is_measured for row in _rows(run))
    title = "Weights at each checkpoint: mean [range over matrices]"
    return (Table("checkpoints", title, _COLUMNS, rows),) if rows else ()


def _rows(run: Run) -> list[tuple[Cell, ...]]:
    """Return a row for each checkpoint with spectra."""
    spectra = run.columns("spectra", "step", "object", *_VALUES)
    weights = spectra[(spectra["object"] == "weight") & spectra["entropy_energy"].notna()]
    found: list[tuple[Cell, ...]] = []
    for step, rows in weights.groupby("step"):
        values = (rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in _VALUES)
        found.append(
            (run.name, int(str(step)), len(rows), *(mean_and_range([*one[np.isfinite(one)]]) for one in values))
        )
    return found
