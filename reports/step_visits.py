"""How well the second-order model of the loss predicted each visited step, with what rounding leaves unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.series import Series
from lossscope.reports.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["StepVisit", "step_visits", "trust_series"]

_MEASURES: Final = ("loss_change", "first_remainder", "second_remainder", "trust_ratio", "relative_first")
_ALL: Final = (*_MEASURES, "relative_second")


@dataclass(frozen=True)
class StepVisit:
    """A step that was held against its model; None is what rounding, or a zero of the model, leaves unknown."""

    step: int
    trust: float | None  # change / predicted change
    error: float | None  # of it, by the rounding of the losses
    first: float | None  # |R1| / |g'D|
    second: float | None  # r2 = |R2| / (|g'D| + |D'HD| / 2)
    least: float | None  # r2 is at least so much, rounding taken off
    most: float | None  # and at most so much


def step_visits(run: Run) -> list[StepVisit]:
    """The visits of a run that have a trust ratio, in order.

    A remainder, or a change of the loss, that is no larger than its own rounding tells nothing of its size: what is
    made from it is unknown, not small.
    """
    rows = run.standing[run.standing["measure"].isin(_ALL) & run.standing["tensor"].isna()]
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        by_step.setdefault(int(row["step"]), {})[str(row["measure"])] = row
    return [_visit(step, found) for step, found in sorted(by_step.items()) if "trust_ratio" in found]


def trust_series(run: Run) -> Series:
    """The trust ratio over steps, its error that of rounding; nan where it is unknown."""
    found = step_visits(run)
    columns = ([one.step for one in found], [one.trust for one in found], [one.error for one in found])
    x, y, error = (np.array([np.nan if one is None else one for one in column], dtype=np.float64) for column in columns)
    return Series(run.name, x, y, error)


def _visit(step: int, found: dict[str, Any]) -> StepVisit:
    """What one visit says."""
    trust, share = _value(found, "trust_ratio"), _rounding_share(found, "loss_change")
    known = trust is not None and share is not None
    least, most = _miss(found)
    return StepVisit(
        step,
        trust if known else None,
        abs(trust) * share if trust is not None and share is not None else None,
        _value(found, "relative_first") if _rounding_share(found, "first_remainder") is not None else None,
        _value(found, "relative_second") if _rounding_share(found, "second_remainder") is not None else None,
        least,
        most,
    )


def _miss(found: dict[str, Any]) -> tuple[float | None, float | None]:
    """Between what r2 lies, however much of it is rounding; None where that is not told."""
    first, second = _value(found, "first_remainder"), _value(found, "second_remainder")
    r1, r2, rounding = (
        _value(found, "relative_first"),
        _value(found, "relative_second"),
        _rounding(found, "second_remainder"),
    )
    if first is None or second is None or r2 is None or rounding is None:
        return None, None
    if r2 > 0:
        terms = abs(second) / r2
    elif r1:
        terms = abs(first) / r1 + abs(first - second)
    else:
        return None, None
    return max(abs(second) - rounding, 0.0) / terms, (abs(second) + rounding) / terms


def _rounding_share(found: dict[str, Any], measure: str) -> float | None:
    """By what share of itself a number may be off; None where that is all of it, or not told."""
    value, rounding = _value(found, measure), _rounding(found, measure)
    return rounding / abs(value) if value and rounding is not None and rounding < abs(value) else None


def _rounding(found: dict[str, Any], measure: str) -> float | None:
    """By how much a number may be off; None where that is not told."""
    row = found.get(measure)
    low, high = (None, None) if row is None else (number(row["low"]), number(row["high"]))
    return None if low is None or high is None else (high - low) / 2


def _value(found: dict[str, Any], measure: str) -> float | None:
    """The value of a measure; None where it is missing."""
    row = found.get(measure)
    return None if row is None else number(row["value"])
