"""Drawing of planes as filled contours with matplotlib, as vector shapes: the page embeds no pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import Contours
from lossscope.reports.render.axes import axis_label
from lossscope.reports.render.style import RC, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

__all__ = ["contour_figure"]

_COLORS: Final = "cividis"  # readable without color vision, and in print
_LEVELS: Final = 14
_SPREAD: Final = 30.0  # ratio of the range of values to their median height from which levels are logarithmic
_PART: Final = 0.72  # of the width, without labels and scale
_FOOT: Final = 0.6  # inches
_LEAST: Final = 2.0  # inches
_LONGEST: Final = 30  # characters of a label


def contour_figure(data: Contours) -> Figure:
    """Return the planes beside each other, with one scale of colors; cells that are missing are left empty."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    values = [np.array([[math.nan if one is None else one for one in row] for row in panel]) for panel in data.panels]
    levels = _levels(np.concatenate([one.ravel() for one in values]))
    with rc_context({**RC, "axes.grid": False}):
        count = len(values)
        figure = Figure(figsize=(WIDTH, _height(data, count)), layout="compressed")
        axes = figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)[0]
        drawn = [_draw(ax, data, one, levels) for ax, one in zip(axes, values, strict=True)]
        axes[0].set_ylabel(axis_label(data.y))
        figure.supxlabel(axis_label(data.x), fontsize=RC["axes.labelsize"])
        if drawn[0] is not None:
            bar = figure.colorbar(drawn[0], ax=list(axes), shrink=0.8, pad=0.02, format="%.3g")
            bar.set_label(axis_label(data.color))
            bar.outline.set_visible(False)
    return figure


def _height(data: Contours, count: int) -> float:
    """Return the height of the figure at which planes of equal units fill it, in inches."""
    sides = [
        max(one for one in axis if one is not None) - min(one for one in axis if one is not None)
        for axis in (data.columns, data.rows)
    ]
    return min(max(_PART * WIDTH / count * sides[1] / sides[0] + _FOOT, _LEAST), WIDTH)


def _levels(values: Any) -> Any:
    """Return the values of the contours: equally spaced, or with equal ratios of the height above the lowest."""
    there = values[np.isfinite(values)]
    if not len(there) or there.max() <= there.min():
        middle = float(there[0]) if len(there) else 0.0
        return np.linspace(middle - 0.5, middle + 0.5, 3)
    low, high = float(there.min()), float(there.max())
    height = float(np.median(there) - low)
    if height > 0 and (high - low) / height < _SPREAD:
        return np.linspace(low, high, _LEVELS)
    least = max(height, (high - low) * 1e-6) / _SPREAD
    return low + np.concatenate([[0.0], np.geomspace(least, high - low, _LEVELS)])


def _draw(ax: Axes, data: Contours, values: Any, levels: Any) -> QuadContourSet | None:
    """Draw one plane and the marks on it; between neighboring contours colors differ equally."""
    from matplotlib.colors import BoundaryNorm

    x, y = (np.array([math.nan if one is None else one for one in axis]) for axis in (data.columns, data.rows))
    found = None
    if np.isfinite(values).sum() > 3:
        masked = np.ma.masked_invalid(values)
        found = ax.contourf(x, y, masked, levels=levels, cmap=_COLORS, norm=BoundaryNorm(levels, 256))
        ax.contour(x, y, masked, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    if data.joined:
        ax.plot([one.x for one in data.marks], [one.y for one in data.marks], color="white", linewidth=1.2)
    for one in data.marks:
        ax.plot(one.x, one.y, "o", color="white", markeredgecolor="black", markersize=5)
        words = printable(one.words)
        shown = words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"
        ax.annotate(shown, (one.x, one.y), xytext=(4, 4), textcoords="offset points", color="white", fontsize=7.0)
    if not data.marks:
        ax.plot(0, 0, "+", color="white", markersize=8)
    ax.set_aspect("equal", adjustable="box")
    return found
