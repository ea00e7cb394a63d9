"""Data model of figures: lines, points, spectra, intervals, heat maps and planes. Renderers draw this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = [
    "Axis",
    "Cloud",
    "ContourMark",
    "Contours",
    "Curve",
    "Curves",
    "FigureData",
    "Forest",
    "ForestRow",
    "HeatMap",
    "HeatPanel",
    "Numbers",
    "Points",
    "Spectra",
    "Spectrum",
    "Threshold",
    "drawn",
    "limits_of",
]

_DRAWN: Final = (1e-100, 1e100)

Numbers: TypeAlias = tuple[float | None, ...]


@dataclass(frozen=True)
class Axis:
    """An axis of a figure."""

    label: str
    unit: str = "1"
    scale: Literal["linear", "log", "symlog"] = "linear"
    linear_to: float = 1.0  # a symlog axis is linear between minus and plus this value
    linear_decades: float = 0.35  # length of each half of the linear part, in decades
    limits: tuple[float, float] | None = None
    falling: bool = False  # the largest value is on the left


@dataclass(frozen=True)
class Curve:
    """A line over steps with its range over seeds (`low`, `high`) and its measurement error (`error`)."""

    name: str
    hue: int  # index of the arm in the palette, the same in every figure of a report
    x: Numbers
    median: Numbers
    low: Numbers
    high: Numbers
    error: Numbers
    seeds: int
    dashed: bool = False
    steps_per_point: int = 1  # if above 1, each point is the median and range of that many steps
    interval: bool = False  # low and high are confidence intervals (None if missing), not ranges over seeds


@dataclass(frozen=True)
class Points:
    """Points of one arm with vertical error bars, all seeds pooled."""

    name: str
    hue: int
    x: Numbers
    y: Numbers
    error: Numbers
    seeds: int


@dataclass(frozen=True)
class Threshold:
    """A horizontal line, or a vertical one in `Curves.marks`, with its formula."""

    value: float
    label: str


@dataclass(frozen=True)
class Curves:
    """A figure of lines over steps."""

    key: str
    title: str
    caption: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    thresholds: tuple[Threshold, ...] = ()
    styles: tuple[str, str] | None = None  # meanings of solid and dashed lines, if both occur
    absent: tuple[str, ...] = ()  # arms without data, named in the legend
    summary: tuple[str, ...] = ()  # the figure in numbers, also its alternative text
    marks: tuple[Threshold, ...] = ()  # vertical lines
    limits: tuple[str, ...] = ()  # lines under its title: what it cannot show


@dataclass(frozen=True)
class Cloud:
    """A scatter figure."""

    key: str
    title: str
    caption: str
    x: Axis
    y: Axis
    points: tuple[Points, ...]
    absent: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalue density of one run per decade of the axis, and its isolated eigenvalues."""

    name: str
    hue: int
    x: Numbers
    number: Numbers
    low: Numbers
    high: Numbers
    single: Numbers  # isolated eigenvalues


@dataclass(frozen=True)
class Spectra:
    """A figure of spectral densities."""

    key: str
    title: str
    caption: str
    x: Axis
    y: Axis
    spectra: tuple[Spectrum, ...]
    absent: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForestRow:
    """A number with its interval and the values behind it, on a line of a forest plot."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    dots: Numbers
    words: str  # right of the line: the numbers
    faint: bool = False  # drawn in grey: shown, but it decides nothing


@dataclass(frozen=True)
class Forest:
    """A forest plot: a line for each number, with a reference that separates one direction from the other."""

    key: str
    title: str
    caption: str
    x: Axis
    rows: tuple[ForestRow, ...]
    reference: float = 1.0
    band: tuple[float, float] | None = None  # values too close to the reference to matter
    sides: tuple[str, str] | None = None  # meanings of smaller and of larger values
    narrow: bool = False  # as wide as other figures; else as wide as the page
    absent: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeatPanel:
    """A panel of a heat map: a row of values for each label of the figure, and one value beside it."""

    title: str
    values: tuple[Numbers, ...]  # one row per label, one value per column
    beside: Numbers = ()  # one value per label, such as a null; empty for none


@dataclass(frozen=True)
class HeatMap:
    """A figure of rows of colored cells, one scale of colors for all panels."""

    key: str
    title: str
    caption: str
    x: Axis  # of the columns, which are equally wide
    color: Axis  # with limits; linear or log
    columns: Numbers
    rows: tuple[str, ...]
    panels: tuple[HeatPanel, ...]
    beside: str = ""  # name of the values beside the panels
    absent: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContourMark:
    """A point that is shown on a plane, with its own value."""

    name: str
    x: float
    y: float
    words: str  # beside it; "" for none
    value: float | None = None  # its own, which is not that of the plane below it unless `distance` is 0
    distance: float = 0.0  # from the plane, in the unit of its axes
    panel: int | None = None  # on which it lies; None for all


@dataclass(frozen=True)
class Contours:
    """A figure of values on planes, as contours or as surfaces, with one scale of colors for all panels."""

    key: str
    title: str
    caption: str
    x: Axis
    y: Axis
    color: Axis
    columns: Numbers
    rows: Numbers
    panels: tuple[tuple[Numbers, ...], ...]  # of each plane the rows of values, None where one is missing
    marks: tuple[ContourMark, ...] = ()
    lines: tuple[tuple[int, ...], ...] = ()  # through marks, by their places
    raised: bool = False  # surfaces, with the value as height
    absent: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()  # lines under its title: what it cannot show


FigureData: TypeAlias = Curves | Cloud | Spectra | Forest | HeatMap | Contours


def limits_of(figure: FigureData) -> tuple[str, ...]:
    """Return the lines that say what a figure cannot show; none for a kind of figure that has none."""
    return figure.limits if isinstance(figure, Curves | Contours) else ()


def drawn(value: float) -> bool:
    """Return True for a number that a figure draws: 0, or a size from 1e-100 to 1e100.

    The arithmetic of axes over- or underflows beyond. Other renderers show every finite number.
    """
    return value == 0 or _DRAWN[0] <= abs(value) <= _DRAWN[1]
