"""Verdicts on claims of kind `flatter`: rows of the panel at a training loss, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.figures import figures_of
from lossscope.landscape.verdicts.level import LossName, loss_name, lowest_level
from lossscope.landscape.verdicts.notes import claim_after_runs, notes_of
from lossscope.landscape.verdicts.pairs import Matchup
from lossscope.landscape.verdicts.rows import rows_of
from lossscope.landscape.verdicts.rule import CONFIDENCE, LEAST_PAIRS, status_of_words
from lossscope.landscape.verdicts.sentences import changes, joined, sentence, spoken, too_few
from lossscope.landscape.verdicts.verdict import Note, Reason, Row, Status, Verdict

__all__ = ["flatter"]

OTHER_LEVELS: Final = (0.5, 0.1, 0.02, 0.002)


def flatter(
    claim: Claim, matchups: Sequence[Matchup], reasons: Sequence[Reason] = (), *, confidence: float = CONFIDENCE
) -> Verdict:
    """Judge that A finds flatter solutions than B.

    Args:
        claim: The claim.
        matchups: Pairs of each A with each B on each task.
        reasons: Why other matchups are missing; then the claim is not judged.
        confidence: Coverage of the intervals.
    """
    reasons = [*reasons, *(one for matchup in matchups for one in matchup.reasons)]
    paired = [one for one in matchups if one.pairs]
    runs = [run for one in paired for run in one.runs]
    loss = loss_name(runs)
    lowest = lowest_level(runs, loss)
    level = lowest if claim.level in ("lowest", None) else float(claim.level or 0)
    if paired and level is None:
        reasons.append(
            Reason("NOT_MEASURED", "a run has no training loss above 0 at its evaluations, so there is no level")
        )
    if not paired or level is None:
        return _unjudged(claim, reasons or [Reason("NO_PAIRS", "there are no runs of both arms on one task")])
    rows = _rows(claim, paired, level, loss, confidence)
    counting = [row for row in rows if row.counts]
    few = [too_few(len(one.pairs), one.task) for one in paired if len(one.pairs) < LEAST_PAIRS][:1]
    blocked = [*reasons, *few]
    status = "NOT_JUDGED" if blocked else _status(counting, paired)
    small = status in ("SUPPORTED", "CONTRADICTED") and all(row.small for row in counting)
    figures = {**figures_of(paired, level, loss, confidence), "lowest": lowest, "raw_says": _raw_says(status, rows)}
    figures |= {"margin": claim.margin, "confidence": confidence, **_extremes(counting)}
    figures["file"] = {"path": claim.file, "sha256": claim.file_hash, "modified": claim.modified} if claim.file else {}
    figures["other_levels"] = [] if blocked else [*_other_levels(claim, paired, level, loss, confidence)]
    notes = [
        *notes_of(paired, counting, level, loss, figures),
        *_level_sensitive(status, figures["other_levels"]),
        *claim_after_runs(claim.modified, runs),
    ]
    found = [*blocked, *dict.fromkeys(one for row in counting for one in row.reasons)]
    pairs = {task: min(len(one.pairs) for one in paired if one.task == task) for task in _tasks(paired)}
    a, b = joined(_names(paired, "a")), joined(_names(paired, "b"))
    return Verdict(
        claim=claim.id,
        kind="flatter",
        text=claim.text,
        status=status,
        small=small,
        sentence=sentence(
            status,
            a,
            b,
            counting,
            small=small,
            pairs=pairs,
            level=level,
            reasons=found,
            margin=claim.margin,
            lowest=lowest,
            steps=_longest(runs),
        ),
        reasons=tuple(found),
        notes=tuple(notes),
        level=level,
        pairs=pairs,
        rows=tuple(rows),
        change=changes(status, b, counting, margin=claim.margin, untried=[note.code for note in notes]),
        figures=figures,
        source=claim.source,
    )


def _rows(claim: Claim, matchups: Sequence[Matchup], level: float, loss: LossName, confidence: float) -> list[Row]:
    """Return the rows of all matchups."""
    terms: dict[str, Any] = {"measures": claim.measures, "margin": claim.margin, "confidence": confidence}
    return [row for one in matchups for row in rows_of(one, level, loss, **terms)]


def _status(rows: Sequence[Row], matchups: Sequence[Matchup]) -> Status:
    """Return the status of rows."""
    return status_of_words([(row.word, row.small) for row in rows], min(len(one.pairs) for one in matchups))


def _other_levels(
    claim: Claim, matchups: Sequence[Matchup], level: float, loss: LossName, confidence: float
) -> Iterator[dict[str, Any]]:
    """Yield the status at each of the usual levels that all runs reach."""
    for other in OTHER_LEVELS:
        if other == level:
            continue
        rows = [row for row in _rows(claim, matchups, other, loss, confidence) if row.counts]
        if not any(reason.code in ("MISSING_LEVEL", "NOT_MEASURED") for row in rows for reason in row.reasons):
            yield {"level": other, "status": _status(rows, matchups), "small": all(row.small for row in rows)}


def _level_sensitive(status: Status, others: Sequence[dict[str, Any]]) -> Iterator[Note]:
    """Yield a note if another level gives another status."""
    different = [one for one in others if one["status"] != status]
    if different:
        words = joined(f"{one['status']} at {one['level']:g}" for one in different)
        yield Note("LEVEL_SENSITIVE", f"Another training loss gives another verdict: {words}.")


def _raw_says(status: Status, rows: Sequence[Row]) -> str:
    """Return a sentence on raw numbers that contradict a verdict; empty if they do not."""
    raw = [row for row in rows if not row.counts]
    opposite = {"SUPPORTED": "sharper", "CONTRADICTED": "flatter"}.get(status)
    found = [row for row in raw if row.word == opposite]
    if found:
        ratios = joined(f"{row.ratio:.2f}" for row in found)
        return f"Raw numbers say the opposite: {found[0].label} {ratios} (a rescaling changes them)."
    found = [row for row in raw if row.word in ("flatter", "sharper") and not row.small]
    if found and status in ("EQUIVALENT", "MIXED"):
        ratios = joined(f"{row.ratio:.2f}" for row in found)
        label = f"{found[0].label[0].upper()}{found[0].label[1:]}"
        return f"{label} says {ratios} and would have misled: a rescaling changes it."
    return ""


def _extremes(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the rows whose ratios are nearest to 1 and farthest from it, each as label, task, arms and ratio."""
    known = sorted((row for row in rows if row.ratio > 0), key=lambda row: abs(math.log(row.ratio)))
    ends = {"weakest": known[0], "strongest": known[-1]} if known else {}
    keys = ("label", "task", "a", "b", "ratio")
    return {name: {key: getattr(row, key) for key in keys} for name, row in ends.items()}


def _unjudged(claim: Claim, reasons: Sequence[Reason]) -> Verdict:
    """Return the verdict on a claim without rows."""
    words = spoken(reasons[0])
    return Verdict(claim.id, "flatter", claim.text, "NOT_JUDGED", False, words, tuple(reasons), source=claim.source)


def _tasks(matchups: Sequence[Matchup]) -> list[str]:
    """Return the tasks, each once."""
    return [*dict.fromkeys(one.task for one in matchups)]


def _names(matchups: Sequence[Matchup], side: str) -> list[str]:
    """Return the arms of a side, each once."""
    return [*dict.fromkeys(str(getattr(one, side)) for one in matchups)]


def _longest(runs: Sequence[Any]) -> int | None:
    """Return the steps of the longest run; None if no step was recorded."""
    return max((int(run.steps["step"].iloc[-1]) for run in runs if len(run.steps)), default=None)
