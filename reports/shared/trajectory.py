"""Curvature over the run in text: a line of bars for each measure, and a table of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.series import Band, FloatArray, over_seeds
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.known_errors import known_series
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["bars", "trajectory_tables", "without_ranges"]

_BARS: Final = "▁▂▃▄▅▆▇█"
_GAP: Final = "·"
_WIDTH: Final = 24  # bars in a line
_WIDE: Final = 20.0  # ratio of the largest to the smallest value above which bars are logarithmic
_ROWS: Final = 12  # evaluations of an arm in the table, at most
_ARMS: Final = 4  # arms above which the table of evaluations is left out
_NOTE: Final = (
    "Bars are the evaluations from the first to the last, on a logarithmic scale if the values span more than a factor "
    "of 20; a dot is a missing value. Of several seeds they are medians. Of more than 24 evaluations a bar is the one "
    "of its part of the run that is farthest from the median of that part and its neighbors, so that no peak is lost."
)
_EVERY_NOTE: Final = "Medians over seeds, with the largest measurement error or, of several seeds, their range."


def bars(values: Sequence[float | None] | FloatArray, limits: tuple[float, float] | None = None) -> str:
    """Return numbers as a line of bars, a dot for a missing one.

    Of many numbers each bar is the one of its part that is farthest from the median of that part and its neighbors, so
    that a peak between two bars is seen; it is a dot where all numbers of its part are missing.
    With `limits`, they are the values of the lowest and of the highest bar, on a linear scale.

    Example:
        >>> bars([1, 2, None, 3, 4])
        '▁▃·▆█'
    """
    there = np.array(values, dtype=np.float64)  # None becomes nan
    there[~np.isfinite(there)] = np.nan
    if len(there) > _WIDTH:
        there = _farthest(there)
    finite = there[np.isfinite(there)]
    if not len(finite):
        return _GAP * len(there)
    if limits is None and finite.min() > 0 and finite.max() > _WIDE * finite.min():
        there, finite = np.log(there), np.log(finite)
    low, high = limits or (finite.min(), finite.max())
    places = np.clip((there - low) / ((high - low) or 1.0), 0, 1) * (len(_BARS) - 1)
    return "".join(_BARS[round(place)] if np.isfinite(place) else _GAP for place in places)


def _farthest(values: FloatArray) -> FloatArray:
    """Return of each part of many numbers the one farthest from the median around it; nan if all of it are missing."""
    parts = [part[np.isfinite(part)] for part in np.array_split(values, _WIDTH)]
    around = (np.concatenate(parts[max(place - 1, 0) : place + 2]) for place in range(_WIDTH))
    with np.errstate(over="ignore"):
        return np.array(
            [
                part[np.abs(part - np.median(near)).argmax()] if len(part) else np.nan
                for part, near in zip(parts, around, strict=True)
            ]
        )


def trajectory_tables(runs: Sequence[Run], measures: Sequence[tuple[str, str, str]]) -> tuple[Table, ...]:
    """Return the table of bars and the table of evaluations; none without two evaluations of a measure.

    Args:
        runs: The runs; grouped by arm.
        measures: Name in `probes`, title and unit of each measure.
    """
    arms = list(by_arm(runs).items())
    bands = {
        (arm, name): over_seeds(arm, [known_series(run, name) for run in members])
        for arm, members in arms
        for name, _, _ in measures
    }
    known = {key: band for key, band in bands.items() if int(np.isfinite(band.median).sum()) > 1}
    if not known:
        return ()
    present = [one for one in measures if any((arm, one[0]) in known for arm, _ in arms)]
    lines = _lines([arm for arm, _ in arms], present, known)
    if len(arms) > _ARMS:
        return (without_ranges(lines),)
    return (lines, _evaluations([arm for arm, _ in arms], present, known))


def _lines(arms: Sequence[str], measures: Sequence[tuple[str, str, str]], bands: dict[tuple[str, str], Band]) -> Table:
    """Return one row for each arm and measure: first value, bars, last value, and the largest with its step."""
    columns = (
        Column("arm", "arm", words=True),
        Column("measure", "measure", words=True),
        Column("first", "first"),
        Column("bars", "over the run", words=True),
        Column("last", "last"),
        Column("largest", "largest"),
        Column("step", "at step"),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, title, _ in measures:
        for arm in arms:
            band = bands.get((arm, name))
            if band is None:
                continue
            places = np.flatnonzero(np.isfinite(band.median))
            top = int(places[np.argmax(band.median[places])])
            first, last = int(places[0]), int(places[-1])
            drawn = bars([number(one) for one in band.median])
            start, end, peak = (_at(band, place, name) for place in (first, last, top))
            rows.append((arm, title, start, drawn, end, peak, int(band.x[top])))
    return Table("trajectory", "Over the run", columns, tuple(rows), _NOTE)


def without_ranges(table: Table) -> Table:
    """Return a table with medians alone, one line for each of many arms; their ranges limit the digits."""

    def middle(cell: Cell) -> Cell:
        if not isinstance(cell, Quantity) or cell.low is None or cell.high is None:
            return cell
        return Quantity(cell.value, known_error=max((cell.high - cell.low) / 2, cell.known_error or 0.0))

    return replace(table, rows=tuple(tuple(map(middle, row)) for row in table.rows))


def _evaluations(
    arms: Sequence[str], measures: Sequence[tuple[str, str, str]], bands: dict[tuple[str, str], Band]
) -> Table:
    """Return one row for each arm and evaluation; of many evaluations equally spaced ones with both ends."""
    columns = (
        Column("arm", "arm", words=True),
        Column("step", "step"),
        *(Column(name, title, unit) for name, title, unit in measures),
    )
    rows: list[tuple[Cell, ...]] = []
    for arm in arms:
        of_arm = {name: band for (one, name), band in bands.items() if one == arm}
        steps = np.unique(np.concatenate([band.x for band in of_arm.values()] or [np.empty(0)]))
        for step in _some(steps):
            cells = (_on(of_arm.get(name), step, name) for name, _, _ in measures)
            rows.append((arm, int(step), *cells))
    return Table("evaluations", "Each evaluation", columns, tuple(rows), _EVERY_NOTE)


def _some(steps: FloatArray) -> FloatArray:
    """Return equally spaced steps with both ends, or all of a few."""
    if len(steps) <= _ROWS:
        return steps
    found: FloatArray = steps[np.unique(np.linspace(0, len(steps) - 1, _ROWS).round().astype(int))]
    return found


def _on(band: Band | None, step: float, measure: str) -> Quantity:
    """Return the value of a band at a step; missing if it has none."""
    if band is None or not len(places := np.flatnonzero(band.x == step)):
        return Quantity(None)
    return _at(band, int(places[0]), measure)


def _at(band: Band, place: int, measure: str) -> Quantity:
    """Return a value of a band with its range over seeds or, of one seed, its measurement error.

    The error is shown in the second case only, and never for a loss, where it is rounding; it always limits the digits.
    """
    value, error = number(float(band.median[place])), number(float(band.error[place]))
    if band.seeds > 1:
        low, high = number(float(band.low[place])), number(float(band.high[place]))
        return Quantity(value, low=low, high=high, known_error=error)
    return Quantity(value, known_error=error) if measure == "loss" else Quantity(value, error=error)
