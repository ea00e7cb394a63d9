"""Largest known error of λ_max: its bound or, where that was measured and is larger, the sampling error of the data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.series import Series, probe_series
from lossscope.reports.content import Quantity

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["KNOWN_ERROR_NOTE", "known_series", "with_known_error"]

KNOWN_ERROR_NOTE: Final = (
    "Where the sampling error of the data was measured and exceeds the bound of λ_max, the error of λ_max is that one."
)
_OF_LAMBDA_MAX: Final = ("lambda_max", "sharpness_edge_ratio")
_SAMPLED: Final = ("lambda_max_population", "lambda_max_cross_fitted")


def with_known_error(found: Quantity, run: Run, step: int | None, measure: str) -> Quantity:
    """Return a measure at a step with its largest known error.

    Args:
        found: The measure with its own error.
        run: The run.
        step: The evaluation; None for none.
        measure: Name of the measure.
    """
    share = None if step is None or measure not in _OF_LAMBDA_MAX else _sampling_shares(run).get(step)
    if share is None or found.value is None:
        return found
    error = share * abs(found.value)
    return found if error <= (found.error or 0.0) else replace(found, error=error)


def known_series(run: Run, measure: str) -> Series:
    """Return a measure of the whole model, one number per evaluation, with its largest known error."""
    series = probe_series(run, measure)
    shares = _sampling_shares(run) if measure in _OF_LAMBDA_MAX else {}
    if not shares:
        return series
    sampled = np.array([shares.get(int(step), np.nan) for step in series.x]) * np.abs(series.y)
    return replace(series, error=np.fmax(series.error, sampled))


def _sampling_shares(run: Run) -> dict[int, float]:
    """Return the sampling error of λ_max over λ_max at each step where it was measured."""
    rows = run.estimates
    rows = rows[rows["tensor"].isna() & rows["measure"].isin(["lambda_max", *_SAMPLED])]
    if not rows["measure"].isin(_SAMPLED).any():
        return {}
    found: dict[int, float] = {}
    top = {int(row["step"]): row["value"] for row in rows[rows["measure"] == "lambda_max"].to_dict("records")}
    for row in rows[rows["measure"] != "lambda_max"].to_dict("records"):
        step, error = int(row["step"]), row["stderr"]
        size = abs(float(top.get(step, math.nan)))
        if error is not None and size > 0 and math.isfinite(share := float(error) / size):
            found[step] = max(share, found.get(step, 0.0))
    return found
