"""How well the second-order model of the loss predicted each evaluated step, with what rounding leaves unknown."""

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
    """A step that was held against its model; None is what rounding, or a zero of the model, leaves unknown."""

    step: int
    trust: float | None  # change / predicted change
    error: float | None  # of it, by the rounding of the losses
    first: float | None  # |R1| / |g'D|
    second: float | None  # r2 = |R2| / (|g'D| + |D'HD| / 2)
    least: float | None  # r2 is at least so much, rounding taken off
    most: float | None  # and at most so much


def step_evaluations(run: Run) -> list[StepEvaluation]:
    """The evaluations of a run that have a trust ratio, in order.

    A ratio whose ends, by the rounding of the losses, reach 0 tells nothing of its size: it is unknown, not small.
    """
    rows = run.estimates[run.estimates["measure"].isin(_MEASURES) & run.estimates["tensor"].isna()]
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        by_step.setdefault(int(row["step"]), {})[str(row["measure"])] = row
    return [_evaluation(step, found) for step, found in sorted(by_step.items()) if "trust_ratio" in found]


def trust_series(run: Run) -> Series:
    """The trust ratio over steps, its error that of rounding; nan where it is unknown."""
    found = step_evaluations(run)
    columns = ([one.step for one in found], [one.trust for one in found], [one.error for one in found])
    x, y, error = (np.array([np.nan if one is None else one for one in column], dtype=np.float64) for column in columns)
    return Series(run.name, x, y, error)


def _evaluation(step: int, found: Mapping[str, Mapping[str, Any]]) -> StepEvaluation:
    """What one evaluation says."""
    low, high = _ends(found, "trust_ratio")
    trust = _known(found, "trust_ratio")
    error = (high - low) / 2 if trust is not None and low is not None and high is not None else None
    second = _ends(found, "relative_second")
    return StepEvaluation(
        step, trust, error, _known(found, "relative_first"), _known(found, "relative_second"), *second
    )


def _known(found: Mapping[str, Mapping[str, Any]], measure: str) -> float | None:
    """A ratio, unless its ends reach 0 or are not told."""
    low, high = _ends(found, measure)
    apart = low is not None and high is not None and (low > 0 or high < 0)
    return number(found[measure]["value"]) if apart else None


def _ends(found: Mapping[str, Mapping[str, Any]], measure: str) -> tuple[float | None, float | None]:
    """Between what a ratio lies; None where that is not told."""
    row = found.get(measure, {})
    return number(row.get("low")), number(row.get("high"))
