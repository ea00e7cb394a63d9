"""Quantities from runs: values at the last evaluation, and summaries over the seeds of an arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.analysis.series import FloatArray, evaluations, loss_at
from lossscope.landscape.measures.catalogue import group_of
from lossscope.reports.content import Quantity
from lossscope.reports.shared.known_errors import with_known_error

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
    "last_present",
    "last_spectra",
    "loss_at_last_evaluation",
    "loss_with_rounding",
    "mean_and_range",
    "median_and_range",
    "number",
    "overhead_percent",
    "pooled_quantity",
    "row_quantity",
    "run_quantity",
    "seed_count",
    "summarized",
    "widest_error",
]

_COST: Final = ("products", "seconds", "gradients")


def number(value: object) -> float | None:
    """Return the value as a finite float; None for null, nan and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def last_evaluation(run: Run) -> int | None:
    """Return the last step at which curvature was measured."""
    steps = evaluations(run)
    return int(steps[-1]) if len(steps) else None


def at_last_evaluation(run: Run, measure: str) -> Quantity:
    """Return a measure of the whole model at the run's last evaluation; its value is None if missing there.

    `error` is the standard error, or the bound of a Ritz value, or the sampling error of the data where that is larger;
    `low` and `high` are the 95 % interval if there is a standard error.
    """
    rows, step = run.estimates, last_evaluation(run)
    rows = rows[(rows["step"] == step) & (rows["measure"] == measure) & rows["tensor"].isna()]
    return with_known_error(row_quantity(rows.iloc[-1].to_dict()), run, step, measure) if len(rows) else Quantity(None)


def loss_with_rounding(run: Run) -> Quantity:
    """Return the loss of `loss_at_last_evaluation`, whose rounding limits its digits."""
    return Quantity(loss_at_last_evaluation(run), known_error=at_last_evaluation(run, "loss").error)


def loss_at_last_evaluation(run: Run) -> float | None:
    """Return the training loss on the fixed data of curvature at the run's last evaluation."""
    step = last_evaluation(run)
    return None if step is None else number(loss_at(run, np.array([float(step)]))[0])


def last_number(run: Run, column: str) -> float | None:
    """Return the last value of a column of `steps` that is not missing."""
    return last_present(*run.numbers("steps", column))


def last_present(values: FloatArray) -> float | None:
    """Return the last value that is not missing, None if it is not finite."""
    places = np.flatnonzero(~np.isnan(values))
    return number(float(values[places[-1]])) if len(places) else None


def last_spectra(run: Run) -> pd.DataFrame:
    """Return the rows of the spectra table at the last step with any."""
    return run.last_rows("spectra")


def median_and_range(values: Iterable[float | None] | FloatArray) -> Quantity:
    """Return the median, minimum and maximum of the values present; a missing value if there are none."""
    return _with_range(values, np.median)


def summarized(quantities: Iterable[Quantity]) -> Quantity:
    """Return the median and range of quantities; the largest of their errors limits the digits."""
    found = list(quantities)
    return replace(median_and_range(one.value for one in found), known_error=widest_error(found))


def mean_and_range(values: Iterable[float | None]) -> Quantity:
    """Return the mean, minimum and maximum of the values present; a missing value if there are none."""
    return _with_range(values, np.mean)


def widest_error(quantities: Sequence[Quantity]) -> float | None:
    """Return the largest measurement error among the quantities; None if none has one."""
    errors = (error for one in quantities for error in (one.error, one.known_error) if error is not None)
    return max(errors, default=None)


def overhead_percent(run: Run) -> float | None:
    """Return the recording overhead in percent of the wall time."""
    overhead = run.manifest.get("overhead")
    share = number(overhead.get("share")) if isinstance(overhead, dict) else None
    return None if share is None else 100 * share


def seed_count(runs: Sequence[Run]) -> int:
    """Return the number of distinct seeds (init, split, order); a run without recorded seeds counts as one."""
    said = [run.manifest.get("seeds") for run in runs]
    known = {tuple(sorted((str(k), str(v)) for k, v in one.items())) for one in said if isinstance(one, dict) and one}
    return len(known) + sum(not (isinstance(one, dict) and one) for one in said)


def _with_range(values: Iterable[float | None] | FloatArray, middle: Callable[[FloatArray], np.floating]) -> Quantity:
    """Return a central value, the minimum and the maximum of the values present."""
    if isinstance(values, np.ndarray):
        every: FloatArray = values
    else:
        every = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    present = every[np.isfinite(every)]
    if not len(present):
        return Quantity(None)
    missing = len(every) - len(present)
    return Quantity(float(middle(present)), low=float(present.min()), high=float(present.max()), missing=missing)


def row_quantity(row: Mapping[Any, Any]) -> Quantity:
    """Return a row of the probes table as a quantity.

    `error` is the standard error, with `low` and `high` as its 95 % interval; without a standard error, the bound.
    """
    value, stderr, low, high = (number(row[column]) for column in ("value", "stderr", "low", "high"))
    if stderr is not None:
        return Quantity(value, error=stderr, low=low, high=high)
    if value is None or low is None or high is None:
        return Quantity(value, error=number(row["residual"]))
    return Quantity(value, error=max(value - low, high - value))


def estimated(estimate: Estimate, factor: float = 1.0) -> Quantity:
    """Return an estimate times a positive unit factor, with its interval; infinite ends stay infinite."""
    if not math.isfinite(estimate.value):
        return Quantity(None)
    return Quantity(factor * estimate.value, low=factor * estimate.low, high=factor * estimate.high)


def pooled_quantity(found: Pooled) -> Quantity:
    """Return a value over seeds with its interval and the number of seeds without a value."""
    return replace(estimated(found.estimate), missing=found.missing)


def run_quantity(estimate: Estimate) -> Quantity:
    """Return a value of one run with its interval, infinite if it has too few windows."""
    from lossscope.landscape.analysis import pooled

    return estimated(pooled([("run", estimate)]).estimate)


@dataclass(frozen=True)
class CurvatureCost:
    """Cost of the curvature evaluations of a run."""

    evaluations: int
    products: int | None  # Hessian-vector products; None if not recorded
    seconds: float | None  # s
    gradients: float | None  # the same time in units of one gradient, as far as recorded


def curvature_cost(run: Run) -> CurvatureCost:
    """Return evaluations, Hessian-vector products and time of a run's curvature, later probes included."""
    probes, densities, curves = run.probes, run.densities, run.curves
    groups = [group_of(str(name), tensor) for name, tensor in zip(probes["measure"], probes["tensor"], strict=True)]
    # Every row of a group, density rows included, holds the cost of the whole group: count it once.
    of_densities, of_curves = [group_of("density")] * len(densities), [*map(group_of, curves["measure"])]
    spent = {*_spent(probes, groups), *_spent(densities, of_densities), *_spent(curves, of_curves)}
    products, seconds, gradients = (_sum(cost[place] for _, _, cost in spent) for place in range(3))
    return CurvatureCost(len(evaluations(run)), None if products is None else int(products), seconds, gradients)


def _spent(rows: pd.DataFrame, calls: Sequence[str]) -> Iterable[tuple[int, str, tuple[float | None, ...]]]:
    """Return step, call and cost of each row."""
    for step, call, *cost in zip(rows["step"], calls, *(rows[column] for column in _COST), strict=True):
        yield int(step), call, tuple(map(number, cost))


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum of the values present; None if there are none, or if their sum overflows."""
    there = [value for value in values if value is not None]
    try:
        return math.fsum(there) if there else None
    except OverflowError:
        return None
