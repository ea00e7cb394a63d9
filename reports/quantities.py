"""Quantities out of runs: at a run's last visit, and over the seeds of an arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.series import loss_at, visits
from lossscope.reports.content import Quantity

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = [
    "CurvatureCost",
    "at_last_visit",
    "curvature_cost",
    "last_number",
    "last_spectra",
    "last_visit",
    "loss_at_last_visit",
    "mean_and_range",
    "median_and_range",
    "number",
    "overhead_percent",
    "widest_error",
]


def number(value: object) -> float | None:
    """The value as a finite float; None, a gap, for null, nan and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def last_visit(run: Run) -> int | None:
    """The last step at which curvature was measured."""
    steps = visits(run)
    return int(steps[-1]) if len(steps) else None


def at_last_visit(run: Run, measure: str) -> Quantity:
    """A measure of the whole model at the run's last visit, a gap where that visit does not have it.

    `error` is the standard error, or for a Ritz value its residual bound; `low` and `high` are the 95 % interval
    where there is a standard error.
    """
    rows = run.probes
    rows = rows[(rows["step"] == last_visit(run)) & (rows["measure"] == measure) & rows["tensor"].isna()]
    return _quantity(rows.iloc[-1]) if len(rows) else Quantity(None)


def loss_at_last_visit(run: Run) -> float | None:
    """The training loss on the fixed data of curvature at the run's last visit."""
    step = last_visit(run)
    return None if step is None else number(loss_at(run, np.array([float(step)]))[0])


def last_number(rows: pd.DataFrame, column: str) -> float | None:
    """The last number of a column that is not missing."""
    present = rows[column].dropna()
    return number(float(present.iloc[-1])) if len(present) else None


def last_spectra(run: Run) -> pd.DataFrame:
    """The rows of the spectra table at the last step that has any."""
    spectra = run.spectra
    rows: pd.DataFrame = spectra.loc[spectra["step"] == spectra["step"].max()]
    return rows


def median_and_range(values: Iterable[float | None]) -> Quantity:
    """The median with the smallest and the largest, gaps left out; a gap where all are."""
    return _with_range(values, np.median)


def mean_and_range(values: Iterable[float | None]) -> Quantity:
    """The mean with the smallest and the largest, gaps left out; a gap where all are."""
    return _with_range(values, np.mean)


def widest_error(quantities: Sequence[Quantity]) -> float | None:
    """The largest measurement error among the quantities; None where none has one."""
    return max((one.error for one in quantities if one.error is not None), default=None)


def overhead_percent(run: Run) -> float | None:
    """The recorder's share of the wall time in percent."""
    overhead = run.manifest.get("overhead")
    share = number(overhead.get("share")) if isinstance(overhead, dict) else None
    return None if share is None else 100 * share


def _with_range(values: Iterable[float | None], middle: Callable[[list[float]], np.floating]) -> Quantity:
    """A middle, the smallest and the largest of what is there."""
    asked = list(values)
    present = [value for value in asked if value is not None and math.isfinite(value)]
    if not present:
        return Quantity(None)
    gaps = len(asked) - len(present)
    return Quantity(float(middle(present)), low=min(present), high=max(present), gaps=gaps)


def _quantity(row: pd.Series) -> Quantity:
    """A row of the probes table as a quantity."""
    stderr, residual = number(row["stderr"]), number(row["residual"])
    if stderr is None:
        return Quantity(number(row["value"]), error=residual)
    return Quantity(number(row["value"]), error=stderr, low=number(row["low"]), high=number(row["high"]))


# Measures that may come out of one call; where they did, their rows name the same products and seconds.
_CALLS: Final = {
    "lambda_max": "spectrum",
    "lambda_min": "spectrum",
    "trace": "spectrum",
    "frobenius": "spectrum",
    "edge_ratio": "direction",
    "directional_sharpness": "direction",
}


@dataclass(frozen=True)
class CurvatureCost:
    """What the curvature of a run cost."""

    visits: int
    products: int | None  # Hessian products; None where no row says
    seconds: float | None  # s


def curvature_cost(run: Run) -> CurvatureCost:
    """Visits, Hessian products and seconds a run spent on curvature."""
    probes = run.probes
    call = probes["measure"].map(_CALLS).fillna(probes["measure"])
    # Rows of one call each name its whole cost, so it is counted once.
    spent = probes.assign(call=call)[["step", "call", "products", "seconds"]].drop_duplicates()
    products, seconds = (number(spent[column].sum(min_count=1)) for column in ("products", "seconds"))
    return CurvatureCost(len(visits(run)), None if products is None else int(products), seconds)
