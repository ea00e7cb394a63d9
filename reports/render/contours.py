"""Drawing of planes as filled contours with matplotlib, as vector shapes: the page embeds no pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import ContourMark, Contours
from lossscope.reports.render.axes import axis_label
from lossscope.reports.render.style import RC, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

__all__ = ["COLORS", "are_logarithmic", "contour_figure", "contour_levels", "mark_size", "panel_values"]

COLORS: Final = "cividis"  # readable without color vision, and in print
_LEVELS: Final = 14
_SPREAD: Final = 30.0  # ratio of the range of values to their median height from which levels are logarithmic
_PART: Final = 0.72  # of the width, without labels and scale
_FOOT: Final = 0.6  # inches
_LEAST: Final = 2.0  # inches
_LONGEST: Final = 30  # characters of a label
_SIZES: Final = (3.0, 7.0)  # points, of a mark far away from the plane and of one in it
_PLATE: Final = {"facecolor": "#10151a", "edgecolor": "none", "alpha": 0.6, "pad": 1.0}  # behind white labels


def contour_figure(data: Contours) -> Figure:
    """Return the planes beside each other, with one scale of colors; cells that are missing are left empty."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    values = panel_values(data)
    levels = contour_levels(values)
    with rc_context({**RC, "axes.grid": False}):
        count = len(values)
        figure = Figure(figsize=(WIDTH, _height(data, count)), layout="compressed")
        axes = figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)[0]
        drawn = [_draw(ax, data, place, values[place], levels) for place, ax in enumerate(axes)]
        axes[0].set_ylabel(axis_label(data.y))
        figure.supxlabel(axis_label(data.x), fontsize=RC["axes.labelsize"])
        shown = [one for one in drawn if one is not None]
        if shown:
            bar = figure.colorbar(shown[0], ax=list(axes), shrink=0.8, pad=0.02, format="%.3g")
            bar.set_label(axis_label(data.color))
            bar.outline.set_visible(False)
    return figure


def panel_values(data: Contours) -> list[Any]:
    """Return the values of each panel, `(m, k)`, nan where they are missing."""
    return [np.array([[math.nan if one is None else one for one in row] for row in panel]) for panel in data.panels]


def contour_levels(values: list[Any]) -> Any:
    """Return the values of the contours: equally spaced, or with equal ratios of the height above the lowest."""
    there = _finite(values)
    if not len(there) or there.max() <= there.min():
        middle = float(there[0]) if len(there) else 0.0
        return np.linspace(middle - 0.5, middle + 0.5, 3)
    low, high = float(there.min()), float(there.max())
    if not are_logarithmic(values):
        return np.linspace(low, high, _LEVELS)
    least = max(float(np.median(there) - low), (high - low) * 1e-6) / _SPREAD
    return low + np.concatenate([[0.0], np.geomspace(least, high - low, _LEVELS)])


def are_logarithmic(values: list[Any]) -> bool:
    """Return True if values spread so far that equally spaced contours would show the highest ones only."""
    there = _finite(values)
    if not len(there) or there.max() <= there.min():
        return False
    height = float(np.median(there) - there.min())
    return height <= 0 or float(there.max() - there.min()) / height >= _SPREAD


def mark_size(data: Contours, mark: ContourMark) -> float:
    """Return the diameter of a mark in points: the smaller, the further away from the plane, on its own scale."""
    side = max(_length(data.columns), _length(data.rows))
    far, near = _SIZES
    return far + (near - far) / (1 + 4 * mark.distance / side)


def _finite(values: list[Any]) -> Any:
    """Return all values that are there."""
    every = np.concatenate([one.ravel() for one in values])
    return every[np.isfinite(every)]


def _length(axis: tuple[float | None, ...]) -> float:
    """Return the length of a side."""
    there = [one for one in axis if one is not None]
    return max(there) - min(there)


def _height(data: Contours, count: int) -> float:
    """Return the height of the figure at which planes of equal units fill it, in inches."""
    sides = [_length(axis) for axis in (data.columns, data.rows)]
    return min(max(_PART * WIDTH / count * sides[1] / sides[0] + _FOOT, _LEAST), WIDTH)


def _draw(ax: Axes, data: Contours, place: int, values: Any, levels: Any) -> QuadContourSet | None:
    """Draw one plane and the marks on it; between neighboring contours colors differ equally."""
    from matplotlib.colors import BoundaryNorm

    x, y = (np.array([math.nan if one is None else one for one in axis]) for axis in (data.columns, data.rows))
    found, norm = None, BoundaryNorm(levels, 256)
    if np.isfinite(values).sum() > 3:
        masked = np.ma.masked_invalid(values)
        found = ax.contourf(x, y, masked, levels=levels, cmap=COLORS, norm=norm)
        ax.contour(x, y, masked, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))  # marks do not move the edges
    for line in data.lines:
        on = [data.marks[one] for one in line if data.marks[one].panel in (None, place)]
        ax.plot([one.x for one in on], [one.y for one in on], color="white", linewidth=1.2)
    for one in data.marks:
        if one.panel in (None, place):
            _draw_mark(ax, data, one, norm)
    if not data.marks:
        ax.plot(0, 0, "+", color="white", markersize=8)
    ax.set_aspect("equal", adjustable="box")
    if len(data.panels) > 1:
        ax.set_title(f"plane {place + 1}")
    return found


def _draw_mark(ax: Axes, data: Contours, mark: ContourMark, norm: Any) -> None:
    """Draw a point in the color of its own value, or a white one, and its words."""
    import matplotlib

    color: Any = "white"
    if mark.value is not None and math.isfinite(mark.value):
        color = matplotlib.colormaps[COLORS](norm(min(max(mark.value, norm.vmin), norm.vmax)))
    ax.plot(
        mark.x, mark.y, "o", color=color, markeredgecolor="white", markeredgewidth=0.7, markersize=mark_size(data, mark)
    )
    inside = ax.get_xlim()[0] <= mark.x <= ax.get_xlim()[1] and ax.get_ylim()[0] <= mark.y <= ax.get_ylim()[1]
    if not (mark.words and inside):
        return
    words = printable(mark.words)
    shown = words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"
    left = mark.x > (ax.get_xlim()[0] + 2 * ax.get_xlim()[1]) / 3  # toward the middle of the picture
    ax.annotate(
        shown,
        (mark.x, mark.y),
        xytext=(-6 if left else 6, 4),
        textcoords="offset points",
        ha="right" if left else "left",
        color="white",
        fontsize=7.0,
        bbox=_PLATE,
    )
