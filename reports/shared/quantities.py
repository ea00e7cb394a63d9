"""Quantities out of runs: at a run's last evaluation, and over the seeds of an arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.analysis.series import evaluations, loss_at
from lossscope.landscape.curvature.catalogue import group_of
from lossscope.reports.content import Quantity

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.analysis import Estimate, Pooled
    from lossscope.landscape.run import Run

__all__ = [
    "CurvatureCost",
    "at_last_evaluation",
    "curvature_cost",
    "estimated",
    "last_evaluation",
    "last_number",
    "last_spectra",
    "loss_at_last_evaluation",
    "mean_and_range",
    "median_and_range",
    "number",
    "overhead_percent",
    "pooled_quantity",
    "row_quantity",
    "run_quantity",
    "seed_count",
    "widest_error",
]

_COST: Final = ("products", "seconds", "gradients")


def number(value: object) -> float | None:
    """The value as a finite float; None, a gap, for null, nan and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def last_evaluation(run: Run) -> int | None:
    """The last step at which curvature was measured."""
    steps = evaluations(run)
    return int(steps[-1]) if len(steps) else None


def at_last_evaluation(run: Run, measure: str) -> Quantity:
    """A measure of the whole model at the run's last evaluation, a gap where that evaluation does not have it.

    `error` is the standard error, or for a Ritz value its bound; `low` and `high` are the 95 % interval where there
    is a standard error.
    """
    rows = run.estimates
    rows = rows[(rows["step"] == last_evaluation(run)) & (rows["measure"] == measure) & rows["tensor"].isna()]
    return row_quantity(rows.iloc[-1].to_dict()) if len(rows) else Quantity(None)


def loss_at_last_evaluation(run: Run) -> float | None:
    """The training loss on the fixed data of curvature at the run's last evaluation."""
    step = last_evaluation(run)
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


def seed_count(runs: Sequence[Run]) -> int:
    """How many different seeds (init, split, order) the runs have; a run that does not say counts by itself."""
    said = [run.manifest.get("seeds") for run in runs]
    known = {tuple(sorted((str(k), str(v)) for k, v in one.items())) for one in said if isinstance(one, dict) and one}
    return len(known) + sum(not (isinstance(one, dict) and one) for one in said)


def _with_range(values: Iterable[float | None], middle: Callable[[list[float]], np.floating]) -> Quantity:
    """A middle, the smallest and the largest of what is there."""
    asked = list(values)
    present = [value for value in asked if value is not None and math.isfinite(value)]
    if not present:
        return Quantity(None)
    gaps = len(asked) - len(present)
    return Quantity(float(middle(present)), low=min(present), high=max(present), gaps=gaps)


def row_quantity(row: Mapping[Any, Any]) -> Quantity:
    """A row of the probes table as a quantity.

    `error` is the standard error, with `low` and `high` for its 95 % interval; where there is none, the bound.
    """
    value, stderr, low, high = (number(row[column]) for column in ("value", "stderr", "low", "high"))
    if stderr is not None:
        return Quantity(value, error=stderr, low=low, high=high)
    if value is None or low is None or high is None:
        return Quantity(value, error=number(row["residual"]))
    return Quantity(value, error=max(value - low, high - value))


def estimated(estimate: Estimate, factor: float = 1.0) -> Quantity:
    """An estimate, times a positive factor for its unit, with the ends of its interval; infinite ends stay so."""
    if not math.isfinite(estimate.value):
        return Quantity(None)
    return Quantity(factor * estimate.value, low=factor * estimate.low, high=factor * estimate.high)


def pooled_quantity(found: Pooled) -> Quantity:
    """A number over seeds with the ends of its interval; the seeds that have none are counted."""
    return replace(estimated(found.estimate), gaps=found.gaps)


def run_quantity(estimate: Estimate) -> Quantity:
    """A number of one run with the ends of its interval, infinite where it rests on too few windows."""
    from lossscope.landscape.analysis import pooled

    return estimated(pooled([("run", estimate)]).estimate)


@dataclass(frozen=True)
class CurvatureCost:
    """What the curvature of a run cost."""

    evaluations: int
    products: int | None  # Hessian products; None where no row says
    seconds: float | None  # s
    gradients: float | None  # the same time in gradients, as far as rows say


def curvature_cost(run: Run) -> CurvatureCost:
    """Evaluations, Hessian products and time that were spent on a run's curvature, probes after the fact included."""
    probes, densities = run.probes, run.densities
    groups = [group_of(str(name), tensor) for name, tensor in zip(probes["measure"], probes["tensor"], strict=True)]
    # Rows of one call, those of its density too, each name its whole cost, so it is counted once.
    spent = {*_spent(probes, groups), *_spent(densities, [group_of("density")] * len(densities))}
    products, seconds, gradients = (_sum(cost[place] for _, _, cost in spent) for place in range(3))
    return CurvatureCost(len(evaluations(run)), None if products is None else int(products), seconds, gradients)


def _spent(rows: pd.DataFrame, calls: Sequence[str]) -> Iterable[tuple[int, str, tuple[float | None, ...]]]:
    """Step, call and cost of each row."""
    for step, call, *cost in zip(rows["step"], calls, *(rows[column] for column in _COST), strict=True):
        yield int(step), call, tuple(map(number, cost))


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum of what is there; None where nothing is."""
    there = [value for value in values if value is not None]
    return math.fsum(there) if there else None
