"""How close to an orthogonal factor Newton-Schulz came, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.series import by_arm
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.quantities import last_spectra, median_and_range, number

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["newton_schulz_table"]

_MEASURES: Final = (
    Column("outside_band", "outside the band", "1", "share of singular values that the map left outside 0.68 to 1.21"),
    Column("condition", "condition of O", "1", "largest over smallest singular value; a gap where O is singular"),
    Column("polar_norm", "‖O‖_F / √r", "1", "1 for an orthogonal matrix: by what factor the step is shorter"),
    Column("polar_cosine", "cosine to the polar factor", "1", "of direction alone"),
)
_COLUMNS: Final = (
    Column("arm", "arm", words=True),
    Column("matrices", "matrices", "", "matrices times seeds"),
    *_MEASURES,
)
_NOTE: Final = (
    "Exact but for the iteration's own rounding. Directions outside the band stay weak however large the step. The "
    "condition of an update is not that of the landscape."
)


def newton_schulz_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """A row for each arm that orthogonalises; nothing where no run has recorded it."""
    rows: list[tuple[Cell, ...]] = []
    for arm, members in by_arm(runs).items():
        found = [part for run in members if len(part := _orthogonal(run))]
        if found:
            measured = (_over(found, column.key) for column in _MEASURES)
            rows.append((arm, sum(map(len, found)), *(median_and_range(values) for values in measured)))
    title = "Newton-Schulz at the last step with spectra: median [range over matrices and seeds]"
    return (Table("newton_schulz", title, _COLUMNS, tuple(rows), _NOTE),) if rows else ()


def _orthogonal(run: Run) -> pd.DataFrame:
    """The outputs of Newton-Schulz at the run's last step with spectra, those of matrices that were looked at."""
    return last_spectra(run).dropna(subset=["polar_cosine"])


def _over(parts: Sequence[pd.DataFrame], column: str) -> list[float | None]:
    """A column of all the runs."""
    return [number(value) for part in parts for value in part[column]]
