"""Results of the decision rule: rows with intervals, and the verdict on a claim."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

__all__ = ["COLUMNS", "PANEL", "RAW", "Code", "Note", "PanelMeasure", "Reason", "Row", "Status", "Verdict", "Word"]

Status: TypeAlias = Literal["SUPPORTED", "CONTRADICTED", "EQUIVALENT", "MIXED", "INCONCLUSIVE", "NOT_JUDGED"]
Word: TypeAlias = Literal["flatter", "sharper", "small", "unclear", "open", "holds", "fails"]
Code: TypeAlias = Literal[
    "TOO_FEW_PAIRS",
    "NO_PAIRS",
    "DIFFERENT_SETUP",
    "MISSING_LEVEL",
    "NOT_MEASURED",
    "NOT_POSITIVE",
    "IDENTICAL",
    "NOT_TESTABLE",
]


@dataclass(frozen=True)
class PanelMeasure:
    """A row of the panel: a measure of the table `probes`, with its names on pages."""

    label: str  # "worst, relative"
    measure: str  # name in the table `probes`
    gauge: str  # "raw" or "balanced"


PANEL: Final = (
    PanelMeasure("worst, relative", "adaptive_lambda_max", "raw"),
    PanelMeasure("average, relative", "adaptive_trace", "raw"),
    PanelMeasure("worst, balanced", "balanced_lambda_max", "balanced"),
    PanelMeasure("average, balanced", "balanced_trace", "balanced"),
)
RAW: Final = PanelMeasure("raw lambda_max", "lambda_max", "raw")  # shown, never counts


@dataclass(frozen=True)
class Reason:
    """Reason why a row is open or a claim is not judged."""

    code: Code
    text: str  # a clause without a period that says what is missing
    runs: tuple[str, ...] = ()  # names of the runs concerned


@dataclass(frozen=True)
class Note:
    """Note on a verdict; it changes nothing."""

    code: str  # ONE_TASK, ONE_RATE, WIDE_BRACKET, ...
    text: str  # a sentence


@dataclass(frozen=True)
class Row:
    """Ratio of one measure between two arms on one task, over paired seeds."""

    task: str
    a: str
    b: str
    label: str
    measure: str
    gauge: str
    n: int  # pairs with both values
    ratio: float  # exp of the mean paired log-ratio; below 1: A is flatter. nan where the row is open
    low: float  # 95 % Student t interval of the ratio
    high: float
    wins: int  # pairs in which A is flatter
    spread: float  # standard deviation of the paired log-ratios
    noise: float  # root mean square of the relative standard errors of the two values; nan if unknown
    # "small": neither flatter nor sharper, within the margin; "unclear": none of these; "open": a pair has no value;
    # "holds", "fails": the interval lies wholly on the claimed side of a bound, or wholly on the other
    word: Word
    small: bool  # the interval lies within the margin, whatever the word
    differences: tuple[float, ...] = ()  # log-ratio of each pair, in the order of `seeds`; nan where missing
    seeds: tuple[str, ...] = ()  # names of the pairs, such as "0" or "init 0, split 1, order 2"
    reasons: tuple[Reason, ...] = ()
    counts: bool = True  # False for rows that are shown only, such as raw lambda_max

    @property
    def why(self) -> str:
        """The reasons in one text; empty if there is none."""
        return "; ".join(f"{one.code}: {one.text}" for one in self.reasons)


COLUMNS: Final = (
    *("task", "a", "b", "measure", "gauge", "n", "ratio", "low", "high", "wins", "spread", "noise", "word", "why"),
)


@dataclass(frozen=True)
class Verdict:
    """Verdict on a claim."""

    claim: str  # id of the claim; "" for a comparison without one
    kind: Literal["flatter", "bound", "identity", "untestable"]
    text: str  # the claim in words
    status: Status
    small: bool  # SUPPORTED or CONTRADICTED, but by less than the margin on each row
    sentence: str  # the template of the status, filled in
    reasons: tuple[Reason, ...] = ()
    notes: tuple[Note, ...] = ()
    level: float | None = None  # training loss at which the values were read; None where there is none
    pairs: dict[str, int] = field(default_factory=dict)  # number of pairs by task
    rows: tuple[Row, ...] = ()
    change: tuple[str, ...] = ()  # sentences: what would change the verdict
    figures: dict[str, Any] = field(default_factory=dict)  # further numbers by name, see `judge`
    source: str = ""  # where the claim was made
