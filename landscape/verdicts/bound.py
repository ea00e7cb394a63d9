"""Verdicts on claims of kind `bound`: a statistic is at least, or at most, a number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.level import LossName, loss_name, lowest_level
from lossscope.landscape.verdicts.matchups import matchups_of, missing_tasks
from lossscope.landscape.verdicts.notes import claim_after_runs, unpaired
from lossscope.landscape.verdicts.pairs import Matchup, arms_of, keyed, resolve, seed_name, unknown_arm
from lossscope.landscape.verdicts.rows import missing_text
from lossscope.landscape.verdicts.rule import CONFIDENCE, LEAST_PAIRS, interval
from lossscope.landscape.verdicts.sentences import joined, spoken, too_few
from lossscope.landscape.verdicts.statistic_names import Statistic, parse_statistic
from lossscope.landscape.verdicts.statistic_values import Times, paired_values, seed_values, times
from lossscope.landscape.verdicts.verdict import Code, Note, Reason, Row, Status, Verdict, Word

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["bound", "share_interval"]

_FIXES: Final = {"level": ("test_loss", "step_ratio")}  # statistics that are read at a training loss


def bound(claim: Claim, runs: Sequence[Run]) -> Verdict:
    """Judge that a statistic lies on one side of a number.

    The statistic gives one number a seed, or a pair of seeds. Its Student t interval lies wholly on the claimed side:
    SUPPORTED; wholly on the other: CONTRADICTED; else INCONCLUSIVE. Ratios are judged in logarithms. Times that a run
    may not reach are judged by the share of pairs that certainly win. With several tasks or arms all must agree; rows
    on both sides are MIXED.
    """
    statistic = parse_statistic(claim.statistic, f"claim {claim.id!r}")
    if not statistic.paired:
        return _of_seeds(claim, statistic, runs)
    matchups, reasons = matchups_of(claim, runs)
    reasons += [one for matchup in matchups for one in matchup.reasons]
    paired = [one for one in matchups if one.pairs]
    used = [run for one in paired for run in one.runs]
    loss = loss_name(used)
    level = _level(claim, statistic, used, loss)
    if paired and level is None and statistic.name in _FIXES["level"]:
        reasons.append(
            Reason("NOT_MEASURED", "a run has no training loss above 0 at its evaluations, so there is no level")
        )
    if reasons or not paired:
        return _unjudged(claim, reasons or [Reason("NO_PAIRS", "there are no runs of both arms on one task")])
    rows, shares = [], []
    shown = level if statistic.name in _FIXES["level"] else None
    for one in paired:
        if statistic.censored:
            found = times(one, statistic, level, loss)
            share = _share(one, found, claim)
            shares.append(share)
            rows.append(_share_row(claim, one, found, share))
        else:
            numbers, missing = paired_values(one, statistic, level, loss)
            names = tuple(pair.name for pair in one.pairs)
            rows.append(_row(claim, statistic, numbers, missing, shown, task=one.task, a=one.a, b=one.b, seeds=names))
    pairs = {one.task: len(one.pairs) for one in paired}
    figures: dict[str, Any] = {"shares": shares} if shares else {}
    figures["unpaired"] = sorted({name for one in paired for name in one.unpaired})
    return _verdict(claim, statistic, rows, pairs, used, shown, figures)


def _of_seeds(claim: Claim, statistic: Statistic, runs: Sequence[Run]) -> Verdict:
    """Judge a statistic of single arms."""
    every = arms_of(runs)
    tasks = {task: arms for task, arms in every.items() if task in claim.tasks or not claim.tasks}
    rows, used, pairs, reasons = [], list[Any](), dict[str, int](), missing_tasks(claim, every)
    for arm in claim.a:
        found = {task: members for task, arms in tasks.items() if (members := resolve(arm, arms))}
        if not found:
            known = [name for arms in tasks.values() for name in arms]
            reasons.append(Reason("NO_PAIRS", unknown_arm(arm, known)))
        bare = [task for task in claim.tasks if found and task in tasks and task not in found]
        reasons += [Reason("NO_PAIRS", f"no run of arm {arm} on {task} is here") for task in bare]
        for task, members in found.items():
            seeded = [*keyed(arm, members).values()]
            if not seeded:
                reasons.append(Reason("NO_PAIRS", f"the runs of {arm} recorded no seeds: Recorder(..., seeds=...)"))
                continue
            numbers, missing = seed_values(seeded, statistic)
            names = tuple(seed_name(run) for run in seeded)
            row = _row(claim, statistic, numbers, missing, None, task=task, a=arm, b="", seeds=names)
            rows.append(_untested(row) if statistic.name == "overfit" else row)
            used += seeded
            pairs[task] = min(pairs.get(task, len(seeded)), len(seeded))
    if reasons or not rows:
        return _unjudged(claim, reasons or [Reason("NO_PAIRS", "there is no run of these arms")])
    return _verdict(claim, statistic, rows, pairs, used, None, {})


def _level(claim: Claim, statistic: Statistic, runs: Sequence[Run], loss: LossName) -> float | None:
    """Return the training loss at which a statistic is read; None if it could not be chosen."""
    if statistic.name == "step_ratio" and claim.level is None:
        return lowest_level(runs, loss)
    return lowest_level(runs, loss) if claim.level in (None, "lowest") else float(claim.level or 0)


def _row(
    claim: Claim,
    statistic: Statistic,
    numbers: Sequence[float],
    missing: Sequence[Sequence[Reason]],
    level: float | None,
    *,
    task: str,
    a: str,
    b: str,
    seeds: tuple[str, ...],
) -> Row:
    """Return the row of one number a seed or pair: mean and interval, in logarithms for a ratio."""
    d = np.array(numbers, dtype=np.float64)
    known = d[np.isfinite(d)]
    complete = len(known) == len(d)
    mean, low, high = (float(one) for one in interval(d)) if complete else (math.nan,) * 3
    limit, back = (math.log, math.exp) if statistic.ratio else (float, float)
    x, least = _limit(claim)
    word = _side(low, high, limit(x), least=least) if complete else "open"
    sign = 1 if least else -1
    return Row(
        task,
        a,
        b,
        claim.statistic,
        claim.statistic,
        "",
        n=len(known),
        ratio=back(mean),
        low=back(low),
        high=back(high),
        wins=int((sign * (known - limit(x)) >= 0).sum()),
        spread=float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        noise=math.nan,
        word=word,
        small=complete and bool(max(abs(low - limit(x)), abs(high - limit(x))) < claim.margin),
        differences=tuple(float(one) for one in d),
        seeds=seeds,
        reasons=tuple(missing_text(missing, level, unit="pairs" if b else "seeds")),
    )


def _limit(claim: Claim) -> tuple[float, bool]:
    """Return the number of the claim, and True if the statistic is to be at least that."""
    return (float(claim.at_most), False) if claim.at_most is not None else (float(claim.at_least or 0), True)


def _side(low: float, high: float, limit: float, *, least: bool) -> Word:
    """Return the word of an interval: wholly on the claimed side of a limit, wholly on the other, or neither."""
    if low > limit or high < limit:
        return "holds" if (low > limit) == least else "fails"
    return "unclear"


def share_interval(wins: int, losses: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the lower end of the exact interval of the share of wins, and the upper end.

    Args:
        wins: Pairs that certainly win.
        losses: Pairs that certainly lose. All others count as losses in the lower end and as wins in the upper.
        n: Number of pairs, at least 1.
        confidence: Coverage.
    """
    from scipy.stats import binomtest

    worst = binomtest(wins, n).proportion_ci(confidence, "exact")
    best = binomtest(n - losses, n).proportion_ci(confidence, "exact")
    return float(worst.low), float(best.high)


def _share(matchup: Matchup, found: Sequence[Times], claim: Claim) -> dict[str, Any]:
    """Return the pairs that certainly win and lose, and the interval of the share of wins."""
    limit, least = _limit(claim)
    sides = [one.compared(limit, least=least) for one in found]
    wins, losses = sides.count("win"), sides.count("loss")
    low, high = share_interval(wins, losses, len(sides))
    counts = {"wins": wins, "losses": losses, "open": len(sides) - wins - losses, "n": len(sides)}
    return {"task": matchup.task, "a": matchup.a, "b": matchup.b, **counts, "low": low, "high": high}


def _share_row(claim: Claim, matchup: Matchup, found: Sequence[Times], share: dict[str, Any]) -> Row:
    """Return the row of times: the median of the ratios that are known, and the word of the share of wins."""
    logs = np.array([one.log_ratio for one in found])
    known = logs[np.isfinite(logs)]
    word: Word = "holds" if share["low"] > 0.5 else "fails" if share["high"] < 0.5 else "unclear"
    never = [one.text for one in found if one.text]
    code: Code = "MISSING_LEVEL" if any("never reached" in one for one in never) else "NOT_MEASURED"
    reasons = (Reason(code, f"{len(never)} of {len(found)} pairs: {never[0]}"),) if never else ()
    return Row(
        matchup.task,
        matchup.a,
        matchup.b,
        claim.statistic,
        claim.statistic,
        "",
        n=len(found),
        ratio=float(np.exp(np.median(known))) if len(known) == len(found) else math.nan,
        low=math.nan,
        high=math.nan,
        wins=share["wins"],
        spread=float(known.std(ddof=1)) if len(known) > 1 else math.nan,
        noise=math.nan,
        word=word,
        small=False,
        differences=tuple(float(one) for one in logs),
        seeds=tuple(pair.name for pair in matchup.pairs),
        reasons=reasons,
    )


def _verdict(
    claim: Claim,
    statistic: Statistic,
    rows: Sequence[Row],
    pairs: dict[str, int],
    runs: Sequence[Run],
    level: float | None,
    figures: dict[str, Any],
) -> Verdict:
    """Return the verdict on rows."""
    few = next((too_few(len(row.seeds), row.task) for row in rows if len(row.seeds) < LEAST_PAIRS), None)
    words = [row.word for row in rows]
    status: Status = "INCONCLUSIVE"
    if few is not None:
        status = "NOT_JUDGED"
    elif all(word == "holds" for word in words):
        status = "SUPPORTED"
    elif all(word == "fails" for word in words):
        status = "CONTRADICTED"
    elif "holds" in words and "fails" in words:
        status = "MIXED"
    reasons = ([few] if few is not None else []) + [*dict.fromkeys(one for row in rows for one in row.reasons)]
    notes = [*claim_after_runs(claim.modified, runs), *unpaired(figures.get("unpaired", ()))]
    if len(pairs) == 1:
        notes.append(Note("ONE_TASK", f"One task was tried: {next(iter(pairs))}."))
    if statistic.name == "overfit":
        notes += _still_falling(rows)
    return Verdict(
        claim.id,
        "bound",
        claim.text,
        status,
        small=status in ("SUPPORTED", "CONTRADICTED")
        and statistic.name == "test_loss"
        and all(row.small for row in rows),
        sentence=_sentence(claim, statistic, status, rows, figures, reasons, level),
        reasons=tuple(reasons),
        notes=tuple(notes),
        level=level,
        pairs=pairs,
        rows=tuple(rows),
        figures={**figures, "file": {"path": claim.file, "sha256": claim.file_hash, "modified": claim.modified}},
        source=claim.source,
    )


def _untested(row: Row) -> Row:
    """Return a row of `overfit` as unclear where no run was trained past its least test loss."""
    return row if any(row.differences) else replace(row, word="unclear")


def _still_falling(rows: Sequence[Row]) -> Iterator[Note]:
    """Yield a note if the test loss of some runs never rose: their last one is the least."""
    values = [one for row in rows for one in row.differences]
    if count := sum(one == 0 for one in values):
        text = f"In {count} of {len(values)} runs the last test loss is the least: they were not trained past it."
        yield Note("NOT_PAST_MINIMUM", text)


def _sentence(
    claim: Claim,
    statistic: Statistic,
    status: Status,
    rows: Sequence[Row],
    figures: dict[str, Any],
    reasons: Sequence[Reason],
    level: float | None,
) -> str:
    """Return the sentence of a bound: what was found beside what was claimed."""
    if status == "NOT_JUDGED":
        return spoken(reasons[0])
    limit, least = _limit(claim)
    said = f"{'at least' if least else 'at most'} {limit:g}"
    found = joined(_found(row, figures, at) for at, row in enumerate(rows))
    at_level = "" if level is None else f" at loss {level:g}"
    words = {
        "SUPPORTED": "as claimed,",
        "CONTRADICTED": "not",
        "MIXED": "not everywhere",
        "INCONCLUSIVE": "this cannot tell whether it is",
    }
    return f"{claim.statistic}{at_level} is {found}: {words[status]} {said}."


def _found(row: Row, figures: dict[str, Any], at: int) -> str:
    """Return what was found in a row in words."""
    arms = f"{row.a} against {row.b}" if row.b else row.a
    if "shares" in figures:
        share = figures["shares"][at]
        open_ones = f", {share['open']} open" if share["open"] else ""
        ratio = f"{row.ratio:.3g} in the median" if math.isfinite(row.ratio) else "not known for every pair"
        return f"{ratio}, on the claimed side in {share['wins']} of {share['n']} pairs{open_ones} ({arms}, {row.task})"
    if row.word == "open":
        return f"unknown ({row.reasons[0].text if row.reasons else 'no value'}; {arms}, {row.task})"
    return (
        f"{row.ratio:.3g} [{row.low:.3g}, {row.high:.3g}] ({arms}, {row.task}, {row.n} {'pairs' if row.b else 'seeds'})"
    )


def _unjudged(claim: Claim, reasons: Sequence[Reason]) -> Verdict:
    """Return the verdict on a claim without rows."""
    words = spoken(reasons[0])
    return Verdict(claim.id, "bound", claim.text, "NOT_JUDGED", False, words, tuple(reasons), source=claim.source)
