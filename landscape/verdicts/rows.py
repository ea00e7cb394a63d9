"""Rows of a verdict: each measure of the panel over the pairs of two arms at a training loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from lossscope.landscape.verdicts.level import Crossing, LossName, Value, crossing, evaluations_of, value
from lossscope.landscape.verdicts.pairs import Matchup
from lossscope.landscape.verdicts.rule import interval, word_of
from lossscope.landscape.verdicts.verdict import PANEL, RAW, Code, PanelMeasure, Reason, Row, Word

__all__ = ["missing_text", "panel_of", "row_of", "rows_of"]

_MOST_NAMED: Final = 3  # runs in a message
_OPEN: Final[tuple[Word, bool]] = ("open", False)


def panel_of(matchup: Matchup, asked: Sequence[str] = ()) -> list[PanelMeasure]:
    """Return the measures of the panel that are judged: those asked for, else those that are there.

    The two relative ones are always there: where no run has them their rows are open.
    """
    if asked:
        return [one for one in PANEL if one.measure in asked]
    known = {name for run in matchup.runs for name in evaluations_of(run).values}
    return [one for one in PANEL if one.gauge == "raw" or one.measure in known]


def rows_of(
    matchup: Matchup, level: float, loss: LossName, *, measures: Sequence[str] = (), margin: float, confidence: float
) -> list[Row]:
    """Return a row for each measure of the panel, and that of raw lambda_max if any run has it, which never counts.

    Args:
        matchup: Pairs of two arms on one task.
        level: Training loss at which values are read.
        loss: Name of that loss.
        measures: Those asked for; empty for all that are there.
        margin: Ratio below which a difference is small.
        confidence: Coverage of the intervals.
    """
    at = {id(run): crossing(run, level, loss) for run in matchup.runs}
    panel = panel_of(matchup, measures)
    raw = [RAW] if any(RAW.measure in evaluations_of(run).values for run in matchup.runs) else []
    return [
        _panel_row(matchup, one, at, level, margin=margin, confidence=confidence, counts=one is not RAW)
        for one in (*panel, *raw)
    ]


def _panel_row(
    matchup: Matchup,
    measure: PanelMeasure,
    at: dict[int, Crossing | Reason],
    level: float,
    *,
    margin: float,
    confidence: float,
    counts: bool,
) -> Row:
    """Return the row of one measure."""
    found: list[tuple[Value | Reason, Value | Reason]] = []
    for pair in matchup.pairs:
        ends = [(run, at[id(run)]) for run in (pair.a, pair.b)]
        a, b = (place if isinstance(place, Reason) else value(run, place, measure.measure) for run, place in ends)
        found.append((a, b))
    both = [(a, b) if isinstance(a, Value) and isinstance(b, Value) else None for a, b in found]
    differences = [math.nan if one is None else one[0].log - one[1].log for one in both]
    errors = [value.error for one in both if one is not None for value in one if math.isfinite(value.error)]
    noise = float(np.sqrt(np.mean(np.square(errors)))) if errors else math.nan
    reasons = missing_text([[one for one in pair if isinstance(one, Reason)] for pair in found], level)
    return row_of(
        differences,
        reasons=reasons,
        margin=margin,
        confidence=confidence,
        noise=noise,
        task=matchup.task,
        a=matchup.a,
        b=matchup.b,
        label=measure.label,
        measure=measure.measure,
        gauge=measure.gauge,
        seeds=tuple(pair.name for pair in matchup.pairs),
        counts=counts,
    )


def row_of(
    differences: Sequence[float],
    *,
    reasons: Sequence[Reason],
    margin: float,
    confidence: float,
    noise: float = math.nan,
    **names: Any,
) -> Row:
    """Return the row of paired log-ratios; open if one of them is missing."""
    d = np.array(differences, dtype=np.float64)
    known = d[np.isfinite(d)]
    complete = len(known) == len(d) > 0
    mean, low, high = (float(one) for one in interval(d, confidence)) if complete else (math.nan,) * 3
    word, small = _OPEN if not complete else word_of(low, high, margin)
    identical = complete and len(d) > 1 and not d.any()
    if identical:
        reasons = [*reasons, Reason("IDENTICAL", "the values of both arms are equal in every pair")]
    return Row(
        n=len(known),
        ratio=math.exp(mean),
        low=math.exp(low),
        high=math.exp(high),
        wins=int((known < 0).sum()),
        spread=float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        noise=noise,
        word=word,
        small=small,
        differences=tuple(float(one) for one in d),
        reasons=tuple(reasons),
        **names,
    )


def missing_text(
    problems: Sequence[Sequence[Reason]], level: float | None, *, unit: Literal["pairs", "seeds"] = "pairs"
) -> list[Reason]:
    """Return one reason for each code, over the pairs that have no value.

    Args:
        problems: The reasons of each pair, none where both values are there.
        level: Training loss, for the text.
        unit: What has no value: pairs of runs, or the runs of single seeds.
    """
    codes = dict.fromkeys(one.code for pair in problems for one in pair)
    return [_joined(code, problems, level, unit) for code in codes]


def _joined(code: Code, problems: Sequence[Sequence[Reason]], level: float | None, unit: str) -> Reason:
    """Return the reason of one code over all pairs."""
    here = [one for pair in problems for one in pair if one.code == code]
    count = sum(any(one.code == code for one in pair) for pair in problems)
    shared = len(here) > 1 and len({one.text for one in here}) == 1
    shown = [here[0].text] if shared else [f"{one.runs[0]}: {one.text}" for one in here[:_MOST_NAMED]]
    more = [f"{len(here) - _MOST_NAMED} more"] if len(here) > _MOST_NAMED and not shared else []
    at = "" if level is None else f" at loss {level:g}"
    never = all(one.text.startswith("lowest") for one in here)
    words = {
        "MISSING_LEVEL": f"never reached loss {level:g}" if level is not None and never else f"have no crossing{at}",
        "NOT_MEASURED": f"have no value{at}",
        "NOT_POSITIVE": f"have a value that is not above 0{at}",
    }.get(code, "have no value")
    runs = tuple(dict.fromkeys(run for one in here for run in one.runs))
    return Reason(code, f"{count} of {len(problems)} {unit} {words} ({', '.join([*shown, *more])})", runs)
