"""Data model of reports and documents: findings, sections, tables and figures. Renderers take this and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

__all__ = [
    "REPORT_SCHEMA",
    "Arm",
    "Axis",
    "Cell",
    "Cloud",
    "Column",
    "ContourMark",
    "Contours",
    "Curve",
    "Curves",
    "Document",
    "FigureData",
    "Finding",
    "Forest",
    "ForestRow",
    "HeatMap",
    "HeatPanel",
    "Missing",
    "Numbers",
    "Points",
    "Quantity",
    "Report",
    "Section",
    "Severity",
    "Spectra",
    "Spectrum",
    "Statement",
    "Table",
    "Threshold",
    "drawn",
]

REPORT_SCHEMA: Final = 2
_DRAWN: Final = (1e-100, 1e100)

Numbers: TypeAlias = tuple[float | None, ...]


@dataclass(frozen=True)
class Quantity:
    """A value with its uncertainty. `value` is None if it is missing."""

    value: float | None
    error: float | None = None  # standard error or residual bound, as the column states
    low: float | None = None  # interval or range, as the column states
    high: float | None = None
    missing: int = 0  # number of missing values among those it summarizes
    known_error: float | None = None  # largest known error, if it is not shown here: it limits the digits all the same


Cell: TypeAlias = str | int | float | Quantity | None


@dataclass(frozen=True)
class Finding:
    """A checkable statement about the recorded data, with its outcome."""

    claim: str
    outcome: bool | None  # True: the claim is what happened, False: it is not, None: the data do not tell
    numbers: str
    source: str  # table and column or measure it was computed from
    otherwise: str = ""  # sentence of what happened where the claim is not
    usual: bool = False  # both outcomes are usual: neither asks for a look

    @property
    def statement(self) -> str:
        """Sentence of what happened."""
        if self.outcome is True:
            return self.claim
        if self.outcome is None:
            return f"Not known from these runs: {self.claim[:1].lower()}{self.claim[1:]}"
        return self.otherwise or f"Not so: {self.claim[:1].lower()}{self.claim[1:]}"

    @property
    def mark(self) -> str:
        """One word for the outcome: "fine", "look", or "open" if the data do not tell."""
        if self.outcome is None:
            return "open"
        return "fine" if self.outcome or self.usual else "look"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str
    title: str
    unit: str = ""  # "1" for a dimensionless number, "" for none
    meaning: str = ""
    words: bool = False  # text column, left-aligned; numbers are right-aligned


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
    color: Axis  # with limits
    columns: Numbers
    rows: tuple[str, ...]
    panels: tuple[HeatPanel, ...]
    beside: str = ""  # name of the values beside the panels
    absent: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContourMark:
    """A point that is shown on a plane, with its own value in words."""

    name: str
    x: float
    y: float
    words: str


@dataclass(frozen=True)
class Contours:
    """A figure of values on planes, as contours with one scale of colors for all panels."""

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
    joined: bool = False  # a line through the marks in their order
    absent: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()


FigureData: TypeAlias = Curves | Cloud | Spectra | Forest | HeatMap | Contours


@dataclass(frozen=True)
class Missing:
    """A result that this report lacks, with the reason or how to obtain it."""

    what: str
    how: str


@dataclass(frozen=True)
class Arm:
    """An arm of the runs that a report covers, with its color."""

    name: str
    hue: int  # index in the palette, the same on every page about the same runs
    runs: tuple[str, ...] = ()


Severity: TypeAlias = Literal["fine", "look", "act"]


@dataclass(frozen=True)
class Statement:
    """A sentence of the first screen, with its numbers."""

    words: str
    severity: Severity  # fine: as it should be, look: may need attention, act: something is wrong
    figure: str = ""  # key of the figure of the report that shows it; "" if there is none


@dataclass(frozen=True)
class Report:
    """A report: its alert, first screen, notes, findings, tables and figures, in this order."""

    kind: str
    title: str
    subtitle: str  # the runs it covers
    findings: tuple[Finding, ...]
    tables: tuple[Table, ...]
    figures: tuple[FigureData, ...]
    notes: tuple[str, ...]
    missing: tuple[Missing, ...]
    provenance: Table
    alert: str = ""  # first line of every format, if not empty: the runs that diverged
    summary: tuple[Statement, ...] = ()  # the first screen
    arms: tuple[Arm, ...] = ()  # the arms that the runs have, with their colors
    schema: int = REPORT_SCHEMA

    def _repr_html_(self) -> str:
        """Return the report as HTML for a notebook: no script, and styles that reach nothing else."""
        from lossscope.reports.render.notebook import report_fragment

        return report_fragment(self)


@dataclass(frozen=True)
class Section:
    """A question with its answer, and the evidence."""

    key: str
    question: str
    status: str  # in capitals; "" if there is none
    outcome: bool | None  # True: the claim holds, False: it does not, None: it could not be judged
    sentence: str
    setting: str = ""  # task, level, pairs
    claim: str = ""  # the claim in its own words, with its source
    tables: tuple[Table, ...] = ()
    facts: tuple[str, ...] = ()  # sentences below the tables
    change: tuple[str, ...] = ()  # sentences: what would change the answer
    figures: tuple[FigureData, ...] = ()
    data: Mapping[str, object] = field(default_factory=dict)  # for programs


@dataclass(frozen=True)
class Document:
    """Answers to questions: of one comparison, of each claim of a file, or of each contrast of a study."""

    kind: Literal["compare", "check", "contrasts"]
    title: str
    subtitle: str
    sections: tuple[Section, ...]
    provenance: Table
    tables: tuple[Table, ...] = ()  # all sections together
    closing: str = ""  # last line: counts
    notes: tuple[str, ...] = ()
    reproduce: tuple[str, ...] = ()  # commands
    alert: str = ""  # first line of every format, if not empty
    arms: tuple[Arm, ...] = ()  # the arms that the runs have, with their colors
    schema: int = REPORT_SCHEMA

    def _repr_html_(self) -> str:
        """Return the document as HTML for a notebook, like that of a report."""
        from lossscope.reports.render.notebook import document_fragment

        return document_fragment(self)


def drawn(value: float) -> bool:
    """Return True for a number that a figure draws: 0, or a size from 1e-100 to 1e100.

    The arithmetic of axes over- or underflows beyond. Other renderers show every finite number.
    """
    return value == 0 or _DRAWN[0] <= abs(value) <= _DRAWN[1]
