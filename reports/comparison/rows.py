"""Table and forest plot of the rows of a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from lossscope.landscape.verdicts.rule import CONFIDENCE, LEAST_PAIRS, MARGIN
from lossscope.landscape.verdicts.sentences import margin_words
from lossscope.landscape.verdicts.verdict import PANEL, Row, Verdict
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.figure_content import Axis, Forest, ForestRow
from lossscope.reports.shared.number_format import percent, plain
from lossscope.reports.shared.quantities import number

__all__ = ["MISSING", "bound_table", "forest", "interval_texts", "ratio_texts", "reading", "row_table", "row_texts"]

MISSING: Final = "–"
_PLAIN: Final = (0.01, 100.0)  # ratios within have decimals
_FINEST: Final = 1e-4  # half-widths below have digits of their own
_MOST_PLACES: Final = 5  # decimals by which an end differs from 1
_PLACES: Final = (1e-6, 1e6)  # half-widths within have decimals
_ROUNDING: Final = 1e-9  # spreads below are rounding
_TWO_SIDED: Final = 1.96  # half width of a 95 % interval over its standard error
_LARGEST: Final = 100.0  # logarithm of a ratio that is drawn or written
_WORDS: Final = {
    "flatter": "flatter",
    "sharper": "sharper",
    "unclear": "cannot tell",
    "holds": "as claimed",
    "fails": "against the claim",
}
_RAW: Final = "does not count: a rescaling changes it"
_ONE: Final = "one pair: no verdict"
_SEEDS: Final = "standard deviation of the log-ratio over the pairs"


def row_table(verdict: Verdict) -> Table:
    """Return the rows of a verdict as a table: ratio with its interval, pairs that agree, spread, and the reading.

    Tasks and arms have columns where there are several of them. The rows that never count come last.
    """
    rows = _ordered(verdict.rows)
    several = len({row.task for row in rows}) > 1, len({(row.a, row.b) for row in rows}) > 1
    head = f"{rows[0].a} / {rows[0].b}" if rows and not several[1] else "ratio"
    columns = [Column("task", "task", words=True)] if several[0] else []
    columns += [Column("arms", "arms", words=True)] if several[1] else []
    columns += [
        Column("measure", "sharpness", words=True, meaning="relative: to each weight; balanced: after balancing"),
        Column("ratio", head, "1", "below 1: the first is flatter"),
        Column("interval", f"{_level(verdict)} interval", "1", "Student t over pairs"),
        Column("wins", "flatter in", words=True),
        Column("spread", "seeds differ by", meaning=_SEEDS),
        Column("reading", "", words=True),
    ]
    return Table(
        "rows",
        "Sharpness at equal training loss",
        tuple(columns),
        tuple(_cells(row, several, _margin(verdict)) for row in rows),
    )


def bound_table(verdict: Verdict) -> Table:
    """Return the rows of a bound as a table: the statistic, its interval, and in how many seeds or pairs it holds."""
    columns = (
        Column("task", "task", words=True),
        Column("arms", "arms", words=True),
        Column("value", verdict.rows[0].label if verdict.rows else "statistic"),
        Column("interval", "95 % interval"),
        Column("wins", "as claimed in", words=True),
        Column("reading", "", words=True),
    )
    return Table("rows", "Statistic of the claim", columns, tuple(map(_bound_cells, verdict.rows)))


def _bound_cells(row: Row) -> tuple[Cell, ...]:
    """Return the cells of a row of a bound."""
    value, ends = interval_texts(row.ratio, row.low, row.high)
    arms = f"{row.a} and {row.b}" if row.b else row.a
    return row.task, arms, value, ends or None, f"{row.wins} of {row.n}", reading(row)


def forest(verdict: Verdict) -> Forest | None:
    """Return the forest plot of the rows: dots are pairs, bars intervals; None if there are no rows."""
    rows = _ordered(verdict.rows)
    if not rows:
        return None
    several = len({row.task for row in rows}) > 1, len({(row.a, row.b) for row in rows}) > 1
    of = f"sharpness of {rows[0].a} over {rows[0].b}" if not several[1] else "ratio of sharpness"
    lines = tuple(_line(row, several) for row in rows)
    margin = _margin(verdict)
    return Forest(
        key="rows",
        title=of[0].upper() + of[1:],
        caption="Every dot is a pair of runs with equal seeds, the diamond their geometric mean, the bar its "
        f"{_level(verdict)} interval. Grey band: differences below {margin_words(margin)}. The grey row does not "
        "count.",
        x=Axis("ratio of sharpness", scale="log"),
        rows=lines,
        band=(1 / margin, margin),
        sides=("flatter", "sharper"),
        summary=tuple(f"{line.label}: {line.words}" for line in lines),
    )


def row_texts(row: Row) -> tuple[str, str]:
    """Return the ratio of a row and its interval as texts, as `ratio_texts` with the error of its measurements.

    The error is that of the mean over the pairs: each has two values with the relative standard error `noise`.
    """
    error = row.ratio * _TWO_SIDED * row.noise * math.sqrt(2 / max(row.n, 1))
    return ratio_texts(row.ratio, row.low, row.high, error)


def ratio_texts(value: float, low: float, high: float, error: float = math.nan) -> tuple[str, str]:
    """Return a ratio and its interval as texts, with the digits that its largest known error allows.

    These are two decimals where the error is below 1, more where an error below 0.01 or an end near 1 asks for them,
    and fewer where it is larger.

    Args:
        value: The ratio.
        low: Lower end of the interval over pairs; nan for none.
        high: Its upper end.
        error: Error of the ratio by its measurements; nan if it is unknown.

    Example:
        >>> ratio_texts(0.4412, 0.4012, 0.4798)
        ('0.44', '0.40 - 0.48')
        >>> ratio_texts(0.9412, 0.8912, 0.9966)  # whether 1 lies within is seen
        ('0.941', '0.891 - 0.997')
        >>> ratio_texts(1.0412, math.nan, math.nan)
        ('1.04', '–')
    """
    if not math.isfinite(value):
        return MISSING, MISSING
    if not (math.isfinite(low) and math.isfinite(high)):
        places = min(_decimals(error), 2)
        return f"{value:.{places}f}" if _PLAIN[0] <= value < _PLAIN[1] else plain(value, 3), MISSING
    half = max((high - low) / 2, error) if math.isfinite(error) else (high - low) / 2
    if not (_PLAIN[0] <= low and high < _PLAIN[1]) or 0 < half < _FINEST:
        return plain(value, 3), f"{plain(low, 3)} - {plain(high, 3)}"
    places = _decimals(half)
    places += sum(
        any(end != 1 and round(end, more) == 1 for end in (low, high)) for more in range(places, _MOST_PLACES)
    )
    return f"{value:.{places}f}", f"{low:.{places}f} - {high:.{places}f}"


def _decimals(error: float) -> int:
    """Return the decimals of a number with an error: two digits of a large error, one of a small one; 2 if unknown."""
    if not (math.isfinite(error) and error > 0):
        return 2
    size = math.floor(math.log10(error))
    return max(0, -size, min(2, 1 - size))


def interval_texts(value: float, low: float, high: float) -> tuple[str, str]:
    """Return a number and its interval as texts, with one digit of the half-width; no interval if it is missing.

    Example:
        >>> interval_texts(-0.0061, -0.0121, -0.0001)
        ('-0.006', '-0.012 to 0.000')
    """
    if not math.isfinite(value):
        return MISSING, ""
    half = (high - low) / 2
    if not math.isfinite(half) or half <= 0:
        return plain(value, 2), ""
    if not _PLACES[0] <= half < _PLACES[1]:
        return plain(value, 2), f"{plain(low, 2)} to {plain(high, 2)}"
    places = max(0, -math.floor(math.log10(half)))
    texts = [f"{round(one, places) + 0.0:.{places}f}" for one in (value, low, high)]
    return texts[0], f"{texts[1]} to {texts[2]}"


def reading(row: Row, margin: float = MARGIN) -> str:
    """Return what a row says, in words.

    Args:
        row: The row.
        margin: Ratio below which a difference is small.
    """
    if row.word == "open" and (row.counts or row.reasons):
        return _open(row)
    if not row.counts:
        return _RAW
    if row.n < LEAST_PAIRS:
        return _ONE if row.n == 1 else f"{row.n} pairs: too few"
    if row.word == "small":
        return f"no difference above {margin_words(margin)}"
    small = row.small and row.word in ("flatter", "sharper")
    return _WORDS[row.word] + (f", by less than {margin_words(margin)}" if small else "")


def _margin(verdict: Verdict) -> float:
    """Return the ratio below which a difference is small."""
    return float(verdict.figures.get("margin", MARGIN))


def _level(verdict: Verdict) -> str:
    """Return the confidence of the intervals as a per cent."""
    return f"{100 * verdict.figures.get('confidence', CONFIDENCE):.4g} %"


def _open(row: Row) -> str:
    """Return the code of the reason why a row is open; the facts below have it in full."""
    return f"open: {row.reasons[0].code.lower().replace('_', ' ')}" if row.reasons else "open"


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Return the rows by task and arms, those that count first, in the order of the panel."""
    panel = [one.measure for one in PANEL]
    groups = list(dict.fromkeys((row.task, row.a, row.b) for row in rows))

    def place(row: Row) -> tuple[int, bool, int]:
        """Return the place of a row in the table."""
        within = panel.index(row.measure) if row.measure in panel else len(panel)
        return groups.index((row.task, row.a, row.b)), not row.counts, within

    return sorted(rows, key=place)


def _cells(row: Row, several: tuple[bool, bool], margin: float) -> tuple[Cell, ...]:
    """Return the cells of a row."""
    spread = _spread(row)
    wins = f"{row.wins} of {row.n}" if math.isfinite(row.ratio) else None
    label = row.label if row.counts else f"  {row.label}"
    texts = row_texts(row)
    return (*_where(row, several), label, *texts, wins, spread, reading(row, margin))


def _spread(row: Row) -> str | None:
    """Return by how much the ratios of the pairs differ; None for fewer than two."""
    if row.n < 2 or not math.isfinite(row.spread):
        return None
    return "0 %" if row.spread < _ROUNDING else percent(math.expm1(min(row.spread, _LARGEST)))


def _where(row: Row, several: tuple[bool, bool]) -> Iterable[str]:
    """Return the task and the arms of a row, where they are not the same for all rows."""
    if several[0]:
        yield row.task
    if several[1]:
        yield f"{row.a} / {row.b}"


def _line(row: Row, several: tuple[bool, bool]) -> ForestRow:
    """Return a row as a line of the forest plot."""
    middle, ends = row_texts(row)
    numbers = middle if ends == MISSING else f"{middle} [{ends.replace(' - ', ', ')}]"
    there = math.isfinite(row.ratio)
    return ForestRow(
        label=" · ".join((row.label, *_where(row, several))) + ("" if row.counts else " (does not count)"),
        value=number(row.ratio),
        low=number(row.low),
        high=number(row.high),
        dots=tuple(math.exp(one) if math.isfinite(one) and abs(one) < _LARGEST else None for one in row.differences),
        words=f"{numbers}, flatter in {row.wins} of {row.n}" if there else _open(row),
        faint=not row.counts,
    )
