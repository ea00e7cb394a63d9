"""Figure data from runs: curves over steps, points over the loss, and their text summaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.series import Band, FloatArray, Series, evaluations, over_seeds
from lossscope.reports.content import Quantity
from lossscope.reports.figure_content import Axis, Cloud, Curve, Curves, Numbers, Points, Threshold, drawn
from lossscope.reports.shared.number_format import plain, quantity_text
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["cloud", "curves", "step_axis"]

_WIDE: Final = 20  # ratio of the largest to the smallest value above which an axis is logarithmic
SeriesOf = Callable[["Run"], Series]


def curves(
    runs: Sequence[Run],
    *,
    key: str,
    title: str,
    caption: str,
    y: Axis,
    series: SeriesOf,
    dashed: SeriesOf | None = None,
    styles: tuple[str, str] | None = None,
    thresholds: tuple[Threshold, ...] = (),
) -> Curves:
    """Return a figure with one curve per arm over steps; its band is the range over seeds.

    Args:
        runs: The runs; grouped by arm.
        key: Stable name of the figure.
        title: Title.
        caption: Meaning of the figure and its caveats.
        y: Vertical axis. It becomes logarithmic if the values span more than a factor of 20; with thresholds or
            negative values, only if its scale is "log".
        series: Returns the values of one run.
        dashed: Returns a second series of the same run, drawn dashed.
        styles: Meanings of the solid and the dashed line.
        thresholds: Horizontal lines.

    Returns:
        The figure. Arms without data are listed in `absent`.
    """
    bands = [(hue, *arm) for hue, arm in enumerate(_bands(runs, series, dashed))]
    lines = [
        _curve(hue, band, is_dashed)
        for hue, solid, second in bands
        for is_dashed, band in ((False, solid), (True, second))
        if band is not None and band.seeds
    ]
    return Curves(
        key=key,
        title=title,
        caption=_caption(caption, lines),
        x=step_axis(runs),
        y=_scaled(y, lines, thresholds),
        curves=tuple(lines),
        thresholds=thresholds,
        styles=styles,
        absent=tuple(name for _, solid, second in bands for name in _absent(solid, second, styles)),
        summary=tuple(_last_in_words(line, styles, y.unit) for line in lines),
    )


def cloud(runs: Sequence[Run], *, key: str, title: str, caption: str, x: Axis, y: Axis, series: SeriesOf) -> Cloud:
    """Return a scatter figure: the points of each arm, all seeds pooled, with their measurement errors."""
    arms = [
        _points(hue, arm, [series(run) for run in members]) for hue, (arm, members) in enumerate(by_arm(runs).items())
    ]
    drawn = tuple(points for points in arms if points.seeds)
    return Cloud(
        key=key,
        title=title,
        caption=caption,
        x=replace(x, scale=_log_if_positive([value for one in drawn for value in one.x])),
        y=replace(y, scale=_log_if_positive([value for one in drawn for value in one.y])),
        points=drawn,
        absent=tuple(points.name for points in arms if not points.seeds),
        summary=tuple(_extent_in_words(points) for points in drawn),
    )


def step_axis(runs: Sequence[Run]) -> Axis:
    """Return the axis of steps, the same for every figure of a report.

    The axis is logarithmic if the curvature evaluations are spaced logarithmically; with an evaluation before the
    first step it is linear up to step 1.
    """
    steps = np.unique(np.concatenate([evaluations(run) for run in runs] or [np.empty(0)]))
    recorded = [run.columns("steps", "step")["step"] for run in runs]
    ends = [float(one.max()) for one in recorded if len(one)] + [float(step) for step in steps[-1:]]
    if not ends:
        return Axis("optimizer step")
    first, last = min([1.0, *steps[:1]]), max([*ends, 2.0])
    if len(steps) < 5 or np.median(steps) > 0.3 * steps[-1]:
        return Axis("optimizer step", limits=(0.0, last))
    return Axis("optimizer step", scale="log" if first >= 1 else "symlog", limits=(first, last))


def _bands(runs: Sequence[Run], series: SeriesOf, dashed: SeriesOf | None) -> Iterable[tuple[Band, Band | None]]:
    """Return the band of each arm, and that of its dashed series."""
    for arm, members in by_arm(runs).items():
        first = over_seeds(arm, [series(run) for run in members])
        yield first, None if dashed is None else over_seeds(arm, [dashed(run) for run in members])


def _absent(solid: Band, second: Band | None, styles: tuple[str, str] | None) -> Iterable[str]:
    """Return the name of an arm without data, or of its one line without data."""
    bands = (solid,) if second is None or styles is None else (solid, second)
    if not any(band.seeds for band in bands):
        yield solid.arm
    elif styles is not None:
        yield from (f"{solid.arm}, {style}" for band, style in zip(bands, styles, strict=False) if not band.seeds)


def _curve(hue: int, band: Band, dashed: bool) -> Curve:
    """Return a band as a curve."""
    return Curve(
        name=band.arm,
        hue=hue,
        x=_numbers(band.x),
        median=_numbers(band.median),
        low=_numbers(band.low),
        high=_numbers(band.high),
        error=_numbers(band.error),
        seeds=band.seeds,
        dashed=dashed,
        steps_per_point=band.steps_per_point,
    )


def _points(hue: int, arm: str, series: Sequence[Series]) -> Points:
    """Return the points of all seeds of an arm for which both coordinates are present."""
    parts = [(one, np.isfinite(one.x) & np.isfinite(one.y)) for one in series]
    return Points(
        name=arm,
        hue=hue,
        x=tuple(value for one, keep in parts for value in _numbers(one.x[keep])),
        y=tuple(value for one, keep in parts for value in _numbers(one.y[keep])),
        error=tuple(value for one, keep in parts for value in _numbers(one.error[keep])),
        seeds=sum(bool(keep.any()) for _, keep in parts),
    )


def _caption(caption: str, lines: Sequence[Curve]) -> str:
    """Return the caption with explanations of bands, whiskers and binned points, if they occur."""
    parts = [caption]
    if any(line.seeds > 1 for line in lines):
        parts.append("Lines are medians over seeds, bands the range over seeds.")
    if any(error for line in lines for error in line.error):
        parts.append("Whiskers are the largest measurement error among the seeds.")
    gathered = max((line.steps_per_point for line in lines), default=1)
    if gathered > 1:
        parts.append(f"Each point summarizes {gathered} steps by their median and range.")
    if not all(drawn(value) for line in lines for value in (*line.low, *line.high) if value is not None):
        parts.append("Values of a size above 1e100 or below 1e-100 are not drawn.")
    return " ".join(part for part in parts if part)


def _scaled(y: Axis, lines: Sequence[Curve], thresholds: Sequence[Threshold]) -> Axis:
    """Return the axis with its scale: logarithmic if the values span a factor above 20 and no threshold is drawn.

    An axis whose scale is "log" is logarithmic with thresholds too. With negative values it is symmetric logarithmic:
    linear up to the power of ten below the median absolute value.
    """
    lows = [value for line in lines for value in line.low if value is not None and drawn(value)]
    highs = [value for line in lines for value in line.high if value is not None and drawn(value)]
    logarithmic = y.scale == "log"
    if (thresholds and not logarithmic) or not lows:
        return replace(y, scale="linear")
    if min(lows) > 0:
        shown = [*lows, *highs, *(line.value for line in thresholds)]
        return replace(y, scale="log" if max(shown) > _WIDE * min(shown) else "linear")
    sizes = [abs(value) for value in (*lows, *highs) if value]
    if not logarithmic or not sizes or max(sizes) <= _WIDE * float(np.median(sizes)):
        return replace(y, scale="linear")
    return replace(y, scale="symlog", linear_to=float(10.0 ** np.floor(np.log10(np.median(sizes)))))


def _log_if_positive(values: Sequence[float | None]) -> Literal["linear", "log"]:
    """Return "log" if every value is positive, else "linear"."""
    there = [value for value in values if value is None or drawn(value)]
    return "log" if there and all(value is not None and value > 0 for value in there) else "linear"


def _last_in_words(line: Curve, styles: tuple[str, str] | None, unit: str) -> str:
    """Return the last value of a curve as text: arm, value, range, step."""
    last = max((i for i, value in enumerate(line.median) if value is not None), default=None)
    style = f", {styles[line.dashed]}" if styles else ""
    if last is None:
        return f"{line.name}{style}: not measured"
    quantity = Quantity(line.median[last], error=line.error[last], low=line.low[last], high=line.high[last])
    shown = quantity_text(quantity) + (f" {unit}" if unit not in ("", "1") else "")
    where = "at step" if line.steps_per_point == 1 else f"over the {line.steps_per_point} steps up to"
    return f"{line.name}{style}: {shown} {where} {line.x[last]:.0f}"


def _extent_in_words(points: Points) -> str:
    """Return the number of an arm's points and their ranges as text."""
    x = [value for value in points.x if value is not None]
    y = [value for value in points.y if value is not None]
    return (
        f"{points.name}: {len(y)} points, {plain(min(y))} to {plain(max(y))} "
        f"at train losses {plain(min(x))} to {plain(max(x))}"
    )


def _numbers(values: FloatArray) -> Numbers:
    """Return an array as floats, nan as None."""
    return tuple(number(value) for value in values)
