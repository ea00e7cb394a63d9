"""Notes on a verdict: facts that change nothing and that a reader should know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from lossscope.landscape.verdicts.level import WIDE, Crossing, LossName, crossing
from lossscope.landscape.verdicts.pairs import Matchup, date_of
from lossscope.landscape.verdicts.sentences import joined
from lossscope.landscape.verdicts.verdict import Note, Row

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["claim_after_runs", "notes_of", "unequal_cost", "unpaired"]

_UNEQUAL: Final = 1.1  # ratio of gradients or ascents from which it is noted
_EQUAL: Final = 0.005  # relative difference that rounds to 0 %
_MOST_NAMED: Final = 3


def notes_of(
    matchups: Sequence[Matchup],
    rows: Sequence[Row],
    level: float,
    loss: LossName,
    figures: Mapping[str, Any],
) -> list[Note]:
    """Return the notes on rows at a level, except those that need other levels or the file of claims.

    Args:
        matchups: Pairs of runs.
        rows: Rows that count.
        level: Training loss.
        loss: Name of that loss.
        figures: Numbers of `figures_of`.
    """
    return [
        *unequal_cost(matchups, figures["cost"]),
        *_untried(matchups),
        *_quality(matchups, rows, level, loss, figures),
    ]


def unequal_cost(matchups: Sequence[Matchup], costs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[Note]:
    """Yield a note for each matchup whose arms differ by more than 10 % in gradients or ascents up to the level.

    Where one arm takes ascents and the other none, the ascent is what is compared, and there is no note.
    """
    for one in matchups:
        a, b = (costs.get(one.task, {}).get(arm, {}) for arm in (one.a, one.b))
        ascents = [side.get("ascents", math.nan) for side in (a, b)]
        if sum(count > 0 for count in ascents) == 1:
            continue
        parts = [_more(a.get(kind, math.nan), b.get(kind, math.nan), kind) for kind in ("gradients", "ascents")]
        if any(unequal for unequal, _ in parts):
            words = joined(text for _, text in parts if text)
            text = f"{one.a} took {words} than {one.b} up to that loss ({one.task}): not the part alone."
            yield Note("UNEQUAL_COST", text)


def _more(a: float, b: float, kind: str) -> tuple[bool, str]:
    """Return True if two counts differ by more than 10 %, and the difference in words, if there is a known one."""
    if not (a > 0 and b > 0):
        return False, ""
    ratio = a / b
    word = "more" if ratio >= 1 else "fewer"
    if abs(ratio - 1) < _EQUAL:
        return False, ""
    return max(ratio, 1 / ratio) > _UNEQUAL, f"{100 * abs(ratio - 1):.0f} % {word} {kind}"


def claim_after_runs(modified: str, runs: Sequence[Run]) -> Iterator[Note]:
    """Yield a note if the file of a claim is younger than the youngest of its runs.

    Args:
        modified: Date of the file, ISO 8601; empty if unknown.
        runs: The runs of the claim.
    """
    dates = [date for run in runs if (date := date_of(run.manifest.get("created"))) is not None]
    written = date_of(modified)
    if written is not None and dates and written > max(dates):
        text = f"The claim was last changed on {modified}, after its youngest run began ({max(dates).isoformat()})."
        yield Note("CLAIM_AFTER_RUNS", text)


def _untried(matchups: Sequence[Matchup]) -> Iterator[Note]:
    """Yield notes on what was not tried: another task, another learning rate of B."""
    tasks = dict.fromkeys(one.task for one in matchups)
    if len(tasks) == 1:
        yield Note("ONE_TASK", f"One task was tried: {next(iter(tasks))}.")
    rates: dict[str, set[float]] = {}
    for one in matchups:
        for pair in one.pairs[:1]:
            kind, rate = _rate(pair.b)
            rates.setdefault(kind, set()).add(rate)
    if all(len(found) < 2 for found in rates.values()):
        names = joined(dict.fromkeys(one.b for one in matchups))
        yield Note("ONE_RATE", f"No second learning rate of {names} was tried.")


def _rate(run: Run) -> tuple[str, float]:
    """Return the optimizer and the learning rate of a run; nan if unknown."""
    config = run.manifest.get("config")
    config = config if isinstance(config, Mapping) else {}
    facts = run.manifest.get("optimizer_facts")
    facts = facts if isinstance(facts, Mapping) else {}
    groups = facts.get("groups")
    settings = groups[0].get("settings") if isinstance(groups, list) and groups else None
    rate = settings.get("lr") if isinstance(settings, Mapping) else config.get("lr")
    kind = str(config.get("optimizer") or facts.get("class") or run.manifest.get("arm"))
    return kind, float(rate) if isinstance(rate, int | float) else math.nan


def _quality(
    matchups: Sequence[Matchup], rows: Sequence[Row], level: float, loss: LossName, figures: Mapping[str, Any]
) -> Iterator[Note]:
    """Yield notes on how well values and level are known."""
    places = {id(run): (run.name, crossing(run, level, loss)) for one in matchups for run in one.runs}
    wide = [name for name, at in places.values() if isinstance(at, Crossing) and at.ratio > WIDE]
    if wide:
        text = f"Evaluations around the level lie more than a factor {WIDE:g} of loss apart in {_named(wide)}."
        yield Note("WIDE_BRACKET", text)
    noisy = [row.label for row in rows if row.noise > row.spread / 2]
    if noisy:
        labels = "; ".join(dict.fromkeys(noisy))
        text = f"Errors of measurement exceed half of the spread over seeds on {labels}: more products would help."
        yield Note("NOISY_MEASURE", text)
    if figures["unconverged"]:
        counts = joined(f"{count} of {measure}" for measure, count in figures["unconverged"].items())
        yield Note("UNCONVERGED", f"Values that missed the asked accuracy are used: {counts}.")
    bare = [one.task for one in matchups if not any(row.gauge == "balanced" and row.task == one.task for row in rows)]
    if bare:
        tasks = joined(dict.fromkeys(bare))
        yield Note("RELATIVE_ONLY", f"There are no balanced rows on {tasks}: no balanced point was measured.")
    yield from unpaired(figures["unpaired"])


def unpaired(names: Sequence[str]) -> Iterator[Note]:
    """Yield a note that names the runs without a partner, if there are any."""
    if names:
        yield Note("UNPAIRED", f"Left out, for want of a partner: {_named(names)}.")


def _named(names: Sequence[str]) -> str:
    """Return names in words, the first few of them."""
    more = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return joined([*names[:_MOST_NAMED], *more])
