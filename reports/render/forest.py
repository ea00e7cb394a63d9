"""Drawing of forest plots with matplotlib."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import Axis, Forest, ForestRow, drawn
from lossscope.reports.render.axes import dress
from lossscope.reports.render.style import PALETTE, RC, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_forest_row", "forest_figure"]

_WIDE: Final = 9.0  # inches
_ROW: Final = 0.3  # inches
_FRAME: Final = 0.95  # inches above and below the rows
_RATIOS: Final = (1 / 8, 1 / 4, 1 / 2, 1 / 1.25, 1.0, 1.25, 2.0, 4.0, 8.0)
_NAMES: Final = {1 / 8: "1/8", 1 / 4: "1/4", 1 / 2: "1/2", 1 / 1.25: "0.8"}
_FAINT: Final = str(RC["xtick.color"])
_LONGEST: Final = {False: (48, 48), True: (22, 26)}  # characters of labels and of numbers; narrow plots have less room
_ROWS: Final = Axis("")


def forest_figure(data: Forest) -> Figure:
    """Return the forest plot: a line for each row with its dots, its interval and its numbers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**RC, "axes.grid.axis": "x", "axes.spines.left": False}):
        width = WIDTH if data.narrow else _WIDE
        figure = Figure(figsize=(width, _FRAME + _ROW * max(len(data.rows), 1)), layout="constrained")
        ax = figure.subplots()
        if data.band is not None:
            ax.axvspan(*data.band, color=_FAINT, alpha=0.16, linewidth=0, zorder=0)
        ax.axvline(data.reference, color=str(RC["text.color"]), linewidth=1.0, zorder=1)
        for place, row in enumerate(data.rows):
            draw_forest_row(ax, replace(row, words=_short(row.words, _LONGEST[data.narrow][1])), place)
        ax.set_ylim(max(len(data.rows), 1) - 0.4, -0.6)
        _limits(ax, data)
        dress(ax, data.x, _ROWS)
        _ratios(ax, data)
        ax.set_yticks(range(len(data.rows)), [_short(row.label, _LONGEST[data.narrow][0]) for row in data.rows])
        ax.tick_params(axis="y", length=0)
        _sides(ax, data)
    return figure


def draw_forest_row(ax: Axes, row: ForestRow, place: int) -> None:
    """Draw the dots, the interval and the value of a row, and write its numbers on the right."""
    color = _FAINT if row.faint else PALETTE[0]
    dots = [one for one in row.dots if one is not None and drawn(one)]
    ax.plot(dots, [place] * len(dots), "o", color=color, markersize=3.6, markeredgewidth=0, alpha=0.4, zorder=2)
    if row.low is not None and row.high is not None and drawn(row.low) and drawn(row.high):
        ax.plot([row.low, row.high], [place, place], color=color, linewidth=2.6, solid_capstyle="butt", zorder=3)
    if row.value is not None and drawn(row.value):
        ax.plot([row.value], [place], "D", color=color, markersize=5, zorder=4)
    tint = _FAINT if row.faint else str(RC["text.color"])
    ax.text(1.015, place, printable(row.words), transform=ax.get_yaxis_transform(), va="center", color=tint)


def _limits(ax: Axes, data: Forest) -> None:
    """Set the ends of the axis of values, so that the reference and its band are within."""
    logarithmic = data.x.scale == "log"
    shown = [
        one
        for row in data.rows
        for one in (*row.dots, row.value, row.low, row.high)
        if one is not None and drawn(one) and (one > 0 or not logarithmic)
    ]
    shown += [data.reference, *(data.band or ())]
    low, high = min(shown), max(shown)
    if logarithmic:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.1, high * 1.1)
    else:
        room = 0.06 * (high - low) or 1.0
        ax.set_xlim(low - room, high + room)


def _ratios(ax: Axes, data: Forest) -> None:
    """Label a logarithmic axis at round ratios, unless it is longer than they reach; a linear one at few numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = ax.get_xlim()
    if data.x.scale == "linear":
        ax.xaxis.set_major_locator(MaxNLocator(4))
    if data.x.scale != "log" or low < _RATIOS[0] / 2 or high > 2 * _RATIOS[-1]:
        return
    ticks = [one for one in _RATIOS if low <= one <= high]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _ratio(value)))


def _ratio(value: float) -> str:
    """Return a ratio as it is written on the axis."""
    return next((name for one, name in _NAMES.items() if math.isclose(one, value)), f"{value:g}")


def _sides(ax: Axes, data: Forest) -> None:
    """Write the meanings of smaller and larger values above the plot, on either side of the reference."""
    if data.sides is None:
        return
    for words, side, shift in ((f"← {data.sides[0]}", "right", -6), (f"{data.sides[1]} →", "left", 6)):
        ax.annotate(
            printable(words),
            (data.reference, 1.0),
            xycoords=ax.get_xaxis_transform(),
            xytext=(shift, 4),
            textcoords="offset points",
            ha=side,
            color=_FAINT,
        )


def _short(name: str, most: int) -> str:
    """Return a label: printable, and shortened to at most this many characters."""
    name = printable(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"
