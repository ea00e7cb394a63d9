"""What a report says, as data. The renderers take this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = [
    "REPORT_SCHEMA",
    "Axis",
    "Cell",
    "Cloud",
    "Column",
    "Curve",
    "Curves",
    "FigureData",
    "Finding",
    "Missing",
    "Numbers",
    "Points",
    "Quantity",
    "Report",
    "Spectra",
    "Spectrum",
    "Table",
    "Threshold",
    "outcome_words",
]

REPORT_SCHEMA: Final = 1

Numbers: TypeAlias = tuple[float | None, ...]


@dataclass(frozen=True)
class Quantity:
    """A number with what is known about its error; None is a gap."""

    value: float | None
    error: float | None = None  # standard error or residual bound; the column says which
    low: float | None = None  # an interval or a range; the column says which
    high: float | None = None
    gaps: int = 0  # how many of the numbers it was made from are missing


Cell: TypeAlias = str | int | float | Quantity | None


@dataclass(frozen=True)
class Finding:
    """A statement about the runs' own data that can be checked, and how the check came out."""

    claim: str
    outcome: bool | None  # held, did not hold, or None: could not be judged
    numbers: str
    source: str  # the table and column or measure it was read from


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str
    title: str
    unit: str = ""  # "1" for a pure number, "" where there is none
    meaning: str = ""
    words: bool = False  # holds words, set to the left; numbers stand to the right


@dataclass(frozen=True)
class Table:
    """A table; `rows` have one cell per column."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis of a figure."""

    label: str
    unit: str = "1"
    scale: Literal["linear", "log", "symlog"] = "linear"
    linear_to: float = 1.0  # a symlog axis is linear up to here, on both sides of zero
    linear_decades: float = 0.35  # and either half of that is as long as so many decades
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """A line over steps with its band over seeds (`low`, `high`) and its measurement error (`error`)."""

    name: str
    hue: int  # the arm's place in the palette, equal in every figure of a report
    x: Numbers
    median: Numbers
    low: Numbers
    high: Numbers
    error: Numbers
    seeds: int
    dashed: bool = False
    steps_per_point: int = 1  # above 1 a point holds the median and the range of that many steps
    interval: bool = False  # low and high are the interval of each number, None where it has none, and not a range


@dataclass(frozen=True)
class Points:
    """Points of one arm with vertical error bars, all seeds together."""

    name: str
    hue: int
    x: Numbers
    y: Numbers
    error: Numbers
    seeds: int


@dataclass(frozen=True)
class Threshold:
    """A horizontal line with its formula."""

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
    styles: tuple[str, str] | None = None  # what a solid and a dashed line mean, where both occur
    absent: tuple[str, ...] = ()  # arms without a number here: a gap, named in the legend
    summary: tuple[str, ...] = ()  # the figure in numbers: its alternative text


@dataclass(frozen=True)
class Cloud:
    """A figure of points."""

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
    """The eigenvalues of one run: how many per decade of the axis, and those that stand alone."""

    name: str
    hue: int
    x: Numbers
    number: Numbers
    low: Numbers
    high: Numbers
    single: Numbers  # eigenvalues known one by one


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


FigureData: TypeAlias = Curves | Cloud | Spectra


@dataclass(frozen=True)
class Missing:
    """What this report does not have, and why or how to get it."""

    what: str
    how: str


@dataclass(frozen=True)
class Report:
    """A report: findings before tables before figures."""

    kind: str
    title: str
    subtitle: str  # which runs it is about
    findings: tuple[Finding, ...]
    tables: tuple[Table, ...]
    figures: tuple[FigureData, ...]
    notes: tuple[str, ...]
    missing: tuple[Missing, ...]
    provenance: Table
    schema: int = REPORT_SCHEMA


def outcome_words(outcome: bool | None) -> str:
    """The three outcomes in words: held, did not hold, could not be judged."""
    if outcome is None:
        return "could not be judged"
    return "held" if outcome else "did not hold"
