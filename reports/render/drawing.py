"""Drawing of figures with matplotlib. Each drawing function takes an Axes and data and returns its artists."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, Final, assert_never

import numpy as np

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import (
    Cloud,
    Contours,
    Curve,
    Curves,
    FigureData,
    Forest,
    HeatMap,
    Numbers,
    Points,
    Spectra,
    Spectrum,
    Threshold,
    drawn,
)
from lossscope.reports.render.axes import dress
from lossscope.reports.render.contours import contour_figure
from lossscope.reports.render.forest import forest_figure
from lossscope.reports.render.heat_map import heat_map_figure
from lossscope.reports.render.raised import raised_figure
from lossscope.reports.render.style import HEIGHT, RC, WIDTH, hue_color

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = [
    "ARM",
    "CurveArtists",
    "draw_curve",
    "draw_figure",
    "draw_mark",
    "draw_points",
    "draw_spectrum",
    "draw_threshold",
    "figure_svg",
    "saved_svg",
]

ARM: Final = "arm-"  # before the number of an arm: the name of the groups of its artists
_LONGEST_NAME: Final = 26
_APART: Final = 1.03  # factor on x that separates curves with whiskers at the same positions
_DENSE: Final = 150  # number of points above which lines are thin
_LINESTYLES: Final[dict[bool, Any]] = {False: "-", True: (0, (4, 2))}


@dataclass(frozen=True)
class CurveArtists:
    """Artists of `draw_curve`; None if there was nothing to draw."""

    line: Line2D
    band: PolyCollection | None
    whiskers: ErrorbarContainer | None


def draw_curve(ax: Axes, curve: Curve, shift: float = 1.0) -> CurveArtists:
    """Draw an arm's median, its range over seeds as a band and its measurement error as whiskers.

    A missing value breaks the line; a value between two gaps is a dot. If `curve.interval` is true, the whiskers are
    the interval of each value, and values without one are hollow. `shift` is a factor on x that separates the whiskers
    of different curves.
    """
    color = hue_color(curve.hue)
    x, median = shift * _array(curve.x), _array(curve.median)
    width = 1.5 if len(x) < _DENSE else 0.8
    line = ax.plot(x, median, color=color, linestyle=_LINESTYLES[curve.dashed], linewidth=width, zorder=3)[0]
    alone = _between_gaps(median)
    if alone.any():
        ax.plot(x[alone], median[alone], ".", color=color, markersize=4, zorder=3)
    band = whiskers = None
    if curve.interval:
        whiskers = _intervals(ax, x, median, (_array(curve.low), _array(curve.high)), color)
    elif curve.seeds > 1:
        low, high = _array(curve.low), _array(curve.high)
        band = ax.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0, zorder=1)
    error = _array(curve.error)
    if np.nanmax(error, initial=0.0) > 0:
        whiskers = _whiskers(ax, x, median, error, color, marker=".")
    return CurveArtists(line, band, whiskers)


def draw_points(ax: Axes, points: Points) -> ErrorbarContainer:
    """Draw an arm's points with vertical error bars."""
    return _whiskers(ax, _array(points.x), _array(points.y), _array(points.error), hue_color(points.hue), marker="o")


def draw_spectrum(ax: Axes, spectrum: Spectrum, place: int = 0) -> list[Artist]:
    """Draw eigenvalues per decade with their band, and a tick for each isolated eigenvalue in row `place`."""
    color = hue_color(spectrum.hue)
    x = _array(spectrum.x)
    band = ax.fill_between(x, _array(spectrum.low), _array(spectrum.high), color=color, alpha=0.2, linewidth=0)
    (line,) = ax.plot(x, _array(spectrum.number), color=color, linewidth=1.3, zorder=3)
    foot = 0.03 + 0.05 * place
    ticks = ax.vlines(
        _array(spectrum.single),
        foot - 0.02,
        foot + 0.02,
        color=color,
        linewidth=1.1,
        transform=ax.get_xaxis_transform(),
    )
    return [band, line, ticks]


def draw_threshold(ax: Axes, threshold: Threshold) -> Artist:
    """Draw a horizontal dashed line at the threshold."""
    return ax.axhline(threshold.value, color=_ink(), linewidth=1.0, linestyle=(0, (2, 2)), zorder=2)


def draw_mark(ax: Axes, mark: Threshold) -> Artist:
    """Draw a vertical dotted line at the mark."""
    return ax.axvline(mark.value, color=_ink(), linewidth=1.0, linestyle=(0, (1, 2)), zorder=2)


def draw_figure(data: FigureData) -> Figure:
    """Return the complete figure, with axes and legend."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if isinstance(data, Forest):
        return forest_figure(data)
    if isinstance(data, Contours):
        return raised_figure(data) if data.raised else contour_figure(data)
    if isinstance(data, HeatMap):
        return heat_map_figure(data)
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        ax = figure.subplots()
        match data:
            case Curves():
                legend = _draw_curves(ax, data)
            case Cloud():
                legend = _draw_cloud(ax, data)
            case Spectra():
                legend = _draw_spectra(ax, data)
            case _:
                assert_never(data)
        dress(ax, data.x, data.y)
        _legend(figure, legend, data.absent)
    return figure


def figure_svg(data: FigureData) -> str:
    """Return the figure as an SVG document. Equal data gives equal text: no date, fixed salt."""
    from matplotlib import rc_context

    with rc_context(RC):
        return saved_svg(draw_figure(data))


def saved_svg(figure: Figure) -> str:
    """Return a figure of matplotlib as an SVG document."""
    out = StringIO()
    with warnings.catch_warnings():
        # text is kept as text: the viewer's font supplies glyphs missing here
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _draw_curves(ax: Axes, data: Curves) -> list[tuple[Any, str]]:
    """Draw every curve and threshold; return the legend entries."""
    middle = (len(data.curves) - 1) / 2
    for place, curve in enumerate(data.curves):
        with _of_arm(ax, curve.hue):
            draw_curve(ax, curve, _APART ** (place - middle) if curve.interval else 1.0)
    arms = {one.hue: one.name for one in data.curves}  # an arm with only a dashed line needs its color too
    entries: list[tuple[Any, str]] = [(_sample(hue_color(hue)), _name(name)) for hue, name in arms.items()]
    if data.styles is not None:
        entries += [
            (_sample(_ink(), dashed=dashed), words) for dashed, words in zip((False, True), data.styles, strict=True)
        ]
    entries += [(draw_threshold(ax, one), one.label) for one in data.thresholds]
    return entries + [(draw_mark(ax, one), one.label) for one in data.marks]


def _draw_cloud(ax: Axes, data: Cloud) -> list[tuple[Any, str]]:
    """Draw the points of every arm; return the legend entries."""
    entries: list[tuple[Any, str]] = []
    for points in data.points:
        with _of_arm(ax, points.hue):
            entries.append((draw_points(ax, points), _name(points.name)))
    return entries


def _draw_spectra(ax: Axes, data: Spectra) -> list[tuple[Any, str]]:
    """Draw the spectrum of every run; return the legend entries."""
    for place, spectrum in enumerate(data.spectra):
        with _of_arm(ax, spectrum.hue):
            draw_spectrum(ax, spectrum, place)
    return [(_sample(hue_color(one.hue)), _name(one.name)) for one in data.spectra]


@contextmanager
def _of_arm(ax: Axes, hue: int) -> Iterator[None]:
    """Name the groups of all artists drawn within the context after their arm."""
    before = {id(one) for one in ax.get_children()}
    yield
    for artist in ax.get_children():
        if id(artist) not in before:
            artist.set_gid(f"{ARM}{hue}")


def _legend(figure: Figure, entries: list[tuple[Any, str]], absent: tuple[str, ...]) -> None:
    """Draw the legend above the axes; arms without data are listed as not measured."""
    from matplotlib.lines import Line2D

    cross = Line2D([], [], linestyle="none", marker="x", markersize=4, color=str(RC["xtick.color"]))
    nothing = [(cross, f"{_name(name)}: not measured") for name in absent]
    handles = [handle for handle, _ in entries + nothing]
    labels = [printable(label) for _, label in entries + nothing]
    if labels:
        columns = 3 if max(len(label) for label in labels) < 18 else 2
        order = [place for column in range(columns) for place in range(column, len(labels), columns)]  # row by row
        figure.legend(
            [handles[place] for place in order],
            [labels[place] for place in order],
            loc="outside upper left",
            ncols=columns,
            handlelength=1.8,
            columnspacing=1.4,
        )


def _whiskers(ax: Axes, x: Any, y: Any, error: Any, color: str, *, marker: str) -> ErrorbarContainer:
    """Draw points with vertical error bars without caps."""
    size = 4.0 if marker == "." else 3.2
    return ax.errorbar(
        x,
        y,
        yerr=error,
        fmt=marker,
        color=color,
        markersize=size,
        markeredgewidth=0,
        elinewidth=0.9,
        alpha=0.85,
        zorder=4,
    )


def _intervals(ax: Axes, x: Any, y: Any, ends: tuple[Any, Any], color: str) -> ErrorbarContainer:
    """Draw points with their intervals; points without an interval are hollow."""
    low, high = ends
    open_ones = np.isfinite(y) & ~(np.isfinite(low) & np.isfinite(high))
    ax.plot(x[open_ones], y[open_ones], "o", markerfacecolor="none", markeredgecolor=color, markersize=4.5, zorder=4)
    error = np.where(open_ones, np.nan, np.stack([y - low, high - y]))
    return _whiskers(ax, x, np.where(open_ones, np.nan, y), error, color, marker="o")


def _sample(color: str, *, dashed: bool = False) -> Artist:
    """Return a legend line of the same width in every figure."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=_LINESTYLES[dashed], linewidth=1.5)


def _between_gaps(values: Any) -> Any:
    """Return a mask of the values whose neighbors are both missing, which a line would not show."""
    there = np.isfinite(values)
    padded = np.concatenate([[False], there, [False]])
    return there & ~padded[:-2] & ~padded[2:]


def _name(name: str) -> str:
    """Return an arm's name for the legend: printable, shortened, and not hidden by a leading underscore."""
    name = printable(name)
    name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return f"\N{ZERO WIDTH SPACE}{name}" if name.startswith("_") else name


def _array(values: Numbers) -> Any:
    """Return the values as float64, with nan for missing ones and for those that no figure draws."""
    return np.array([np.nan if value is None or not drawn(value) else value for value in values], dtype=np.float64)


def _ink() -> str:
    """Return the text color."""
    return str(RC["text.color"])
