"""Data model of reports and documents: findings, sections and tables. Renderers take this and figures, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from lossscope.reports.figure_content import FigureData

__all__ = [
    "REPORT_SCHEMA",
    "Arm",
    "Cell",
    "Column",
    "Document",
    "Finding",
    "Missing",
    "Quantity",
    "Report",
    "Section",
    "Severity",
    "Statement",
    "Table",
]

REPORT_SCHEMA: Final = 2


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
    opens: bool = False  # stands directly after the first screen, before notes, figures and other tables


@dataclass(frozen=True)
class Missing:
    """A result that this report lacks, with the reason or how to obtain it."""

    what: str
    how: str
    by_nature: bool = False  # the optimizer has no such thing: no reader of the first screen need know


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
    """A report: its alert, first screen, opening tables, notes, findings, tables and figures, in this order."""

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
