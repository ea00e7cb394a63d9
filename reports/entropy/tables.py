"""Order beyond noise in the spectra of gradients, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.series import by_arm
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.notes import INTERVAL_NOTE
from lossscope.reports.shared.quantities import last_spectra, median_and_range, number, pooled_quantity

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.analysis import SpectralOrder
    from lossscope.landscape.run import Run


__all__ = ["newton_schulz_table", "order_table"]

_COLUMNS: Final = (
    Column("arm", "arm", words=True),
    Column("matrix", "matrix", words=True),
    Column("samples", "samples", "", "steps times seeds"),
    Column("null", "entropy of noise", "nats", "energy entropy of white noise of this shape"),
    Column("own", "step's gradient [95 %]", "nats", "entropy of noise less that of the training batch's gradient"),
    Column("batch", "one minibatch [95 %]", "nats", "the same of a probe minibatch"),
    Column("pair", "two together [95 %]", "nats"),
    Column("infinite", "infinite batch [95 %]", "nats", "extrapolated linearly in 1/B"),
)
_NOTE: Final = (
    "0 is a spectrum as white noise has it; more is order. The last column takes entropy as linear in 1/B, "
    "H_inf = 2 H_2B − H_B. Where the noise of batches fills the whole spectrum, order grows with the batch and is "
    "larger still than extrapolated. Where few samples make up a batch's gradient, each of rank one, a small batch has "
    "order of its own, and order falls with the batch."
)
_MOST: Final = 40  # rows
_SIZES: Final = ("own", "batch", "pair", "infinite")


def order_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """The mean over matrices and each matrix of an arm; nothing where no run recorded it."""
    if not any(run.spectra["excess_order"].notna().any() for run in runs):
        return ()
    rows = [row for arm, members in by_arm(runs).items() for row in _of_arm(arm, members)]
    if not rows:
        return ()
    more = f" {len(rows) - _MOST} more rows are not listed." if len(rows) > _MOST else ""
    title = "Order beyond noise: mean over steps"
    return (Table("order", title, _COLUMNS, tuple(rows[:_MOST]), f"{_NOTE} {INTERVAL_NOTE}{more}"),)


def _of_arm(arm: str, runs: Sequence[Run]) -> Iterable[tuple[Cell, ...]]:
    """The mean over matrices first, then each of them."""
    from lossscope.landscape.analysis import mean_order, order_of, seed_of

    orders = [(seed_of(run), order_of(run)) for run in runs]
    names = list(dict.fromkeys(name for _, found in orders for name in found))
    if len(names) > 1:
        yield _row(arm, "mean of all", [(seed_of(run), mean_order(run)) for run in runs])
    for name in names:
        yield _row(arm, name, [(seed, found.get(name)) for seed, found in orders])


def _row(arm: str, name: str, found: Sequence[tuple[object, SpectralOrder | None]]) -> tuple[Cell, ...]:
    """One matrix over the seeds; None is a seed without it, which is a gap."""
    there = [order for _, order in found if order is not None]
    null = number(there[0].null)
    cells = (_order(found, which, null) for which in _SIZES)
    return (arm, name, sum(order.windows for order in there), null, *cells)


def _order(found: Sequence[tuple[object, SpectralOrder | None]], which: str, null: float | None) -> Quantity:
    """An order over the seeds; no end of its interval is above that of a single direction, the entropy of noise."""
    from lossscope.landscape.analysis import GAP, pooled

    quantity = pooled_quantity(pooled((seed, GAP if order is None else getattr(order, which)) for seed, order in found))
    if null is None or quantity.value is None or quantity.high is None or math.isinf(quantity.high):
        return quantity
    return replace(quantity, high=min(quantity.high, max(null, quantity.value)))


_MEASURES: Final = (
    Column("outside_band", "outside the band", "1", "share of singular values that the map left outside 0.68 to 1.21"),
    Column("condition", "condition of O", "1", "largest over smallest singular value; a gap where O is singular"),
    Column("polar_norm", "‖O‖_F / √r", "1", "1 for an orthogonal matrix: by what factor the step is shorter"),
    Column("polar_cosine", "cosine to the polar factor", "1", "of direction alone"),
)
_NEWTON_SCHULZ_COLUMNS: Final = (
    Column("arm", "arm", words=True),
    Column("matrices", "matrices", "", "matrices times seeds"),
    *_MEASURES,
)
_NEWTON_SCHULZ_NOTE: Final = (
    "Exact but for the iteration's own rounding. Directions outside the band stay weak however large the step. The "
    "condition of an update is not that of the landscape."
)


def newton_schulz_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """A row for each arm that orthogonalizes; nothing where no run has recorded it."""
    rows: list[tuple[Cell, ...]] = []
    for arm, members in by_arm(runs).items():
        found = [part for run in members if len(part := _orthogonal(run))]
        if found:
            measured = (_over(found, column.key) for column in _MEASURES)
            rows.append((arm, sum(map(len, found)), *(median_and_range(values) for values in measured)))
    title = "Newton-Schulz at the last step with spectra: median [range over matrices and seeds]"
    return (Table("newton_schulz", title, _NEWTON_SCHULZ_COLUMNS, tuple(rows), _NEWTON_SCHULZ_NOTE),) if rows else ()


def _orthogonal(run: Run) -> pd.DataFrame:
    """The outputs of Newton-Schulz at the run's last step with spectra, those of matrices that were sampled."""
    return last_spectra(run).dropna(subset=["polar_cosine"])


def _over(parts: Sequence[pd.DataFrame], column: str) -> list[float | None]:
    """A column of all the runs."""
    return [number(value) for part in parts for value in part[column]]
