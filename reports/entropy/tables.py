"""Tables of spectral order beyond noise, and of the quality of Newton-Schulz."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.arms import by_arm
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
    Column("null", "entropy of noise", "nats", "energy entropy of a white-noise matrix of this shape"),
    Column(
        "own", "step's gradient [95 %]", "nats", "entropy of noise minus that of the gradient on the training batch"
    ),
    Column("batch", "one minibatch [95 %]", "nats", "the same for the gradient on one probe minibatch"),
    Column("pair", "two minibatches [95 %]", "nats", "the same for two probe minibatches together"),
    Column("infinite", "infinite batch [95 %]", "nats", "linear extrapolation in 1/B"),
)
_NOTE: Final = (
    "0 is the spectrum of white noise; larger values are more ordered. The last column assumes that entropy is linear "
    "in 1/B: H_inf = 2 H_2B − H_B. If minibatch noise fills the whole spectrum, order grows with the batch size and "
    "exceeds the extrapolation. If a batch has few samples, each with a gradient of rank one, the batch itself is "
    "ordered, and order decreases with the batch size."
)
_MOST: Final = 40  # rows
_SIZES: Final = ("own", "batch", "pair", "infinite")


def order_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the order beyond noise of each arm, mean over matrices and by matrix; empty if no run recorded it."""
    if not any(run.columns("spectra", "excess_order")["excess_order"].notna().any() for run in runs):
        return ()
    rows = [row for arm, members in by_arm(runs).items() for row in _of_arm(arm, members)]
    if not rows:
        return ()
    more = f" {len(rows) - _MOST} more rows are not listed." if len(rows) > _MOST else ""
    title = "Order beyond noise: mean over steps"
    return (Table("order", title, _COLUMNS, tuple(rows[:_MOST]), f"{_NOTE} {INTERVAL_NOTE}{more}"),)


def _of_arm(arm: str, runs: Sequence[Run]) -> Iterable[tuple[Cell, ...]]:
    """Return the row of the mean over matrices, then one row per matrix."""
    from lossscope.landscape.analysis import mean_order, order_of, seed_of

    orders = [(seed_of(run), order_of(run)) for run in runs]
    names = list(dict.fromkeys(name for _, found in orders for name in found))
    if len(names) > 1:
        yield _row(arm, "mean of all", [(seed_of(run), mean_order(run)) for run in runs])
    for name in names:
        yield _row(arm, name, [(seed, found.get(name)) for seed, found in orders])


def _row(arm: str, name: str, found: Sequence[tuple[object, SpectralOrder | None]]) -> tuple[Cell, ...]:
    """Return the row of one matrix over the seeds; None is a seed without a value."""
    there = [order for _, order in found if order is not None]
    null = number(there[0].null)
    cells = (_order(found, which, null) for which in _SIZES)
    return (arm, name, sum(order.windows for order in there), null, *cells)


def _order(found: Sequence[tuple[object, SpectralOrder | None]], which: str, null: float | None) -> Quantity:
    """Return an order over the seeds, its interval limited to the largest possible value, the entropy of noise."""
    from lossscope.landscape.analysis import MISSING, pooled

    quantity = pooled_quantity(
        pooled((seed, MISSING if order is None else getattr(order, which)) for seed, order in found)
    )
    if null is None or quantity.value is None or quantity.high is None or math.isinf(quantity.high):
        return quantity
    return replace(quantity, high=min(quantity.high, max(null, quantity.value)))


_MEASURES: Final = (
    Column(
        "outside_band", "outside the band", "1", "share of singular values outside 0.68 to 1.21 after the iteration"
    ),
    Column("condition", "condition of O", "1", "largest over smallest singular value; missing if O is singular"),
    Column("polar_norm", "‖O‖_F / √r", "1", "1 for an orthogonal matrix; below 1 the step is shorter by this factor"),
    Column("polar_cosine", "cosine with the polar factor", "1", "1 for the exact direction, whatever the norm"),
)
_NEWTON_SCHULZ_COLUMNS: Final = (
    Column("arm", "arm", words=True),
    Column("matrices", "matrices", "", "matrices times seeds"),
    *_MEASURES,
)
_NEWTON_SCHULZ_NOTE: Final = (
    "Exact up to the rounding of the iteration. Singular directions outside the band stay weak at any step size. "
    "The condition number of an update is not that of the loss landscape."
)


def newton_schulz_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return one row per arm that orthogonalizes; empty if no run recorded it."""
    rows: list[tuple[Cell, ...]] = []
    for arm, members in by_arm(runs).items():
        found = [part for run in members if len(part := _orthogonal(run))]
        if found:
            measured = (_over(found, column.key) for column in _MEASURES)
            rows.append((arm, sum(map(len, found)), *(median_and_range(values) for values in measured)))
    title = "Newton-Schulz at the last step with spectra: median [range over matrices and seeds]"
    return (Table("newton_schulz", title, _NEWTON_SCHULZ_COLUMNS, tuple(rows), _NEWTON_SCHULZ_NOTE),) if rows else ()


def _orthogonal(run: Run) -> pd.DataFrame:
    """Return the rows of sampled Newton-Schulz outputs at the run's last step with spectra."""
    return last_spectra(run).dropna(subset=["polar_cosine"])


def _over(parts: Sequence[pd.DataFrame], column: str) -> list[float | None]:
    """Return a column of all runs."""
    return [number(value) for part in parts for value in part[column]]
