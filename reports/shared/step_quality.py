"""Accuracy of the quadratic model of the loss at each evaluated step, with rounding errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.analysis.series import Series
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["StepEvaluation", "step_evaluations", "trust_series"]

_MEASURES: Final = ("trust_ratio", "relative_first", "relative_second")


@dataclass(frozen=True)
class StepEvaluation:
    """A step compared with its quadratic model; None if unknown because of rounding or a zero prediction."""

    step: int
    trust: float | None  # change / predicted change
    error: float | None  # error of `trust` from the rounding of the losses
    first: float | None  # |R1| / |g'D|
    second: float | None  # r2 = |R2| / (|g'D| + |D'HD| / 2)
    least: float | None  # lower bound of r2 within rounding
    most: float | None  # upper bound of r2 within rounding


def step_evaluations(run: Run) -> list[StepEvaluation]:
    """Return the evaluations of a run with a trust ratio, in order.

    A ratio whose rounding interval contains 0 is unknown, not small.
    """
    rows = run.estimates[run.estimates["measure"].isin(_MEASURES) & run.estimates["tensor"].isna()]
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        by_step.setdefault(int(row["step"]), {})[str(row["measure"])] = row
    return [_evaluation(step, found) for step, found in sorted(by_step.items()) if "trust_ratio" in found]


def trust_series(run: Run) -> Series:
    """Return the trust ratio over steps with its rounding error; nan if unknown."""
    found = step_evaluations(run)
    columns = ([one.step for one in found], [one.trust for one in found], [one.error for one in found])
    x, y, error = (np.array([np.nan if one is None else one for one in column], dtype=np.float64) for column in columns)
    return Series(run.name, x, y, error)


def _evaluation(step: int, found: Mapping[str, Mapping[str, Any]]) -> StepEvaluation:
    """Return one evaluation from its rows by measure."""
    low, high = _ends(found, "trust_ratio")
    trust = _known(found, "trust_ratio")
    error = (high - low) / 2 if trust is not None and low is not None and high is not None else None
    second = _ends(found, "relative_second")
    return StepEvaluation(
        step, trust, error, _known(found, "relative_first"), _known(found, "relative_second"), *second
    )


def _known(found: Mapping[str, Mapping[str, Any]], measure: str) -> float | None:
    """Return a ratio; None if its interval contains 0 or was not recorded."""
    low, high = _ends(found, measure)
    apart = low is not None and high is not None and (low > 0 or high < 0)
    return number(found[measure]["value"]) if apart else None


def _ends(found: Mapping[str, Mapping[str, Any]], measure: str) -> tuple[float | None, float | None]:
    """Return the interval of a ratio; None for each end that was not recorded."""
    row = found.get(measure, {})
    return number(row.get("low")), number(row.get("high"))
