"""Figures as data for the plots of a page: what a script draws in place of the inline pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, TypeAlias

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import (
    Axis,
    Cloud,
    Curve,
    Curves,
    FigureData,
    Numbers,
    Points,
    Spectra,
    Spectrum,
    drawn,
)

__all__ = ["embedded", "has_data", "plot_data"]

_WHOLE: Final = 10**15  # whole numbers below it are written as such
Values: TypeAlias = list[float | int | None]
Ready: TypeAlias = Callable[[Numbers], Values]


def has_data(figure: FigureData) -> bool:
    """Return False for a figure of arms none of which has data."""
    match figure:
        case Curves():
            return bool(figure.curves)
        case Cloud():
            return bool(figure.points)
        case Spectra():
            return bool(figure.spectra)
        case _:
            return True


def plot_data(figure: FigureData) -> dict[str, object] | None:
    """Return the data of a plot; None for a kind of figure that stays a picture."""
    if not isinstance(figure, Curves | Cloud | Spectra):
        return None
    x, y = _numbers(figure.x, 9), _numbers(figure.y, 6)
    common: dict[str, object] = {
        "title": printable(figure.title),
        "x": _axis(figure.x),
        "y": _axis(figure.y),
        "absent": [printable(name) for name in figure.absent],
    }
    match figure:
        case Curves():
            rules = [(False, one) for one in figure.thresholds] + [(True, one) for one in figure.marks]
            common["lines"] = [_curve(one, x, y) for one in figure.curves]
            common["rules"] = [
                {"value": one.value, "label": printable(one.label), "vertical": upright} for upright, one in rules
            ]
            common["styles"] = figure.styles
        case Cloud():
            common["lines"] = [_points(one, x, y) for one in figure.points]
            common["scatter"] = True
        case Spectra():
            common["lines"] = [_spectrum(one, x, y) for one in figure.spectra]
    return common


def embedded(data: object) -> str:
    """Return data as JSON that may stand inside a `<script>` element: nothing in it ends the element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _axis(axis: Axis) -> dict[str, object]:
    """Return an axis without what has its usual value."""
    unit = f" ({axis.unit})" if axis.unit not in ("", "1") else ""
    found: dict[str, object] = {"label": printable(f"{axis.label}{unit}"), "scale": axis.scale}
    if axis.scale == "symlog":
        found["linear"] = axis.linear_to
    if axis.limits is not None:
        found["limits"] = axis.limits
    if axis.falling:
        found["falling"] = True
    return found


def _curve(curve: Curve, x: Ready, y: Ready) -> dict[str, object]:
    line: dict[str, object] = {"arm": curve.hue, "name": printable(curve.name), "x": x(curve.x), "y": y(curve.median)}
    if curve.interval or curve.seeds > 1:
        line |= {"low": y(curve.low), "high": y(curve.high)}
    if any(curve.error):
        line["error"] = y(curve.error)
    flags = {"dashed": curve.dashed, "interval": curve.interval}
    return line | {name: True for name, there in flags.items() if there}


def _points(points: Points, x: Ready, y: Ready) -> dict[str, object]:
    line: dict[str, object] = {"arm": points.hue, "name": printable(points.name), "x": x(points.x), "y": y(points.y)}
    return line | ({"error": y(points.error)} if any(points.error) else {})


def _spectrum(spectrum: Spectrum, x: Ready, y: Ready) -> dict[str, object]:
    return {
        "arm": spectrum.hue,
        "name": printable(spectrum.name),
        "x": x(spectrum.x),
        "y": y(spectrum.number),
        "low": y(spectrum.low),
        "high": y(spectrum.high),
        "ticks": [one for one in x(spectrum.single) if one is not None],
    }


def _numbers(axis: Axis, digits: int) -> Ready:
    """Return a function that gives numbers so many digits, and None for what has no place on the axis."""

    def short(value: float | None) -> float | int | None:
        if value is None or not drawn(value) or (axis.scale == "log" and value <= 0):
            return None
        rounded = float(f"{value:.{digits}g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < _WHOLE else rounded

    return lambda values: [short(value) for value in values]
