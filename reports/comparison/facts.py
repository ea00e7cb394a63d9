"""Facts beside a verdict: noise that weights bear, test loss, what each side spent, other levels, raw numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lossscope.landscape.verdicts.verdict import Row, Verdict
from lossscope.reports.comparison.rows import interval_texts
from lossscope.reports.comparison.trajectories import RISE
from lossscope.reports.figure_content import Axis, Forest, ForestRow
from lossscope.reports.shared.number_format import percent, plain
from lossscope.reports.shared.quantities import number

__all__ = ["facts", "test_loss_figure"]

_ELSEWHERE: Final = {"LEVEL_SENSITIVE": "other_levels"}  # notes that a fact says in full
_UNTRIED: Final = ("ONE_TASK", "ONE_RATE")  # notes that "Not tried" says


def facts(verdict: Verdict) -> tuple[str, ...]:
    """Return the facts beside a verdict as sentences, and its notes; what the runs do not hold is left out."""
    found = verdict.figures
    said = {code for code, key in _ELSEWHERE.items() if found.get(key)}
    if verdict.status == "NOT_JUDGED" or any(one.startswith("Not tried") for one in verdict.change):
        said |= set(_UNTRIED)
    sentences = (
        *_bearable(found.get("sigma_star", {})),
        *_test_loss(found.get("test_loss", [])),
        *_spent(found.get("cost", {})),
        *_shares(found.get("shares", [])),
        *_open_rows(verdict),
        *([found["raw_says"]] if found.get("raw_says") else []),
        *_lowest(verdict),
        *_other_levels(found.get("other_levels", [])),
        *(note.text for note in verdict.notes if note.code not in said),
    )
    return tuple(dict.fromkeys(sentences))


def test_loss_figure(verdict: Verdict) -> Forest | None:
    """Return the difference of the test loss at the level as a forest plot; None if it was not measured."""
    found = [one for one in verdict.figures.get("test_loss", []) if number(one["difference"]) is not None]
    if not found:
        return None
    several = len({one["task"] for one in found}) > 1
    rows = tuple(_difference_row(one, several) for one in found)
    return Forest(
        key="test_loss",
        title="Test loss at equal fit",
        caption="Difference of the test losses at the level; below 0 the first generalizes better. A claim of its own.",
        x=Axis("difference of test loss"),
        rows=rows,
        reference=0.0,
        sides=("lower", "higher"),
        narrow=True,
        summary=tuple(f"{row.label}: {row.words}" for row in rows),
    )


def _open_rows(verdict: Verdict) -> Iterator[str]:
    """Yield why rows are open, once for all rows of one reason, unless the verdict's sentence says it."""
    rows: dict[str, list[Row]] = {}
    for row in verdict.rows:
        for reason in row.reasons if row.word == "open" else ():
            rows.setdefault(reason.text, []).append(row)
    several = len({(row.task, row.a, row.b) for row in verdict.rows}) > 1
    for text, some in rows.items():
        if text in verdict.sentence:
            continue
        names = [f"{row.label} [{row.task}, {row.a} / {row.b}]" if several else row.label for row in some]
        yield f"Open: {text}." if len(some) == len(verdict.rows) else f"Open ({'; '.join(names)}): {text}."


def _bearable(tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield how far each weight may be off, by task."""
    for task, arms in tasks.items():
        (first, own), *others = list(arms.items()) or [("", {})]
        if not own:
            continue
        rest = ", ".join(f"{arm}: {_share(one)}" for arm, one in others)
        where = _on(task, tasks)
        yield (
            f"{where}{'each' if where else 'Each'} weight of {first} may be off by {_share(own)}"
            f"{f' ({rest})' if rest else ''} before the loss rises by {RISE:g}."
        )


def _share(found: Mapping[str, Any]) -> str:
    """Return sigma* as a per cent, with the number of runs where some have none."""
    short = f", {found['n']} of {found['of']} runs" if found["n"] < found["of"] else ""
    return f"{percent(found['value'])}{short}"


def _test_loss(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the test loss of both arms and their difference."""
    for one in found:
        difference, ends = interval_texts(one["difference"], one["low"], one["high"])
        if number(one["difference"]) is None:
            yield f"Test loss there{_of(one, found)}: {one['n']} pairs have one, not all."
            continue
        places = len(difference.partition(".")[2]) if ends and "e" not in difference else None
        a, b = (plain(one[key], 2) if places is None else f"{one[key]:.{places}f}" for key in ("a_value", "b_value"))
        interval = f" ({ends})" if ends else ""
        yield f"Test loss there{_of(one, found)}: {a} against {b}, difference {difference}{interval}."


def _of(one: Mapping[str, Any], found: list[dict[str, Any]]) -> str:
    """Return the arms and the task of a matchup, where there are several."""
    return f" ({one['a']} and {one['b']} on {one['task']})" if len(found) > 1 else ""


def _spent(tasks: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Yield the gradients and the ascents that each arm took up to the level, by task."""
    for task, arms in tasks.items():
        known = [(arm, one) for arm, one in arms.items() if math.isfinite(one.get("gradients", math.nan))]
        words = "; ".join(f"{arm} {_count(one['gradients'])} gradients{_ascents(one)}" for arm, one in known)
        if known:
            where = _on(task, tasks)
            yield f"{where}{'up' if where else 'Up'} to that loss: {words}."


def _ascents(one: Mapping[str, float]) -> str:
    """Return the number of ascents, where it was recorded."""
    ascents = one.get("ascents", math.nan)
    return f", {_count(ascents) if ascents else 'no'} ascents" if math.isfinite(ascents) else ""


def _count(mean: float) -> str:
    """Return a mean count: a whole number from 10 on."""
    return f"{mean:,.0f}" if mean >= 10 else plain(mean, 2)


def _shares(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield in how many pairs a bound on times holds."""
    for one in found:
        still = f", {one['open']} open" if one.get("open") else ""
        yield (
            f"{one['a']} against {one['b']} on {one['task']}: as claimed in {one['wins']} of {one['n']} pairs{still}; "
            f"share of pairs {one['low']:.2f} to {one['high']:.2f} at 95 %."
        )


def _lowest(verdict: Verdict) -> Iterator[str]:
    """Yield the lowest loss that all runs reach, unless it is the level."""
    lowest = number(verdict.figures.get("lowest"))
    if lowest is not None and lowest != verdict.level:
        yield f"The lowest training loss that all runs reach is {lowest:g}."


def _other_levels(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the status at the other levels that all runs reach."""
    levels: dict[str, list[str]] = {}
    for one in found:
        levels.setdefault(one["status"].replace("_", " "), []).append(f"{one['level']:g}")
    if levels:
        words = "; ".join(f"{status} at {', '.join(at)}" for status, at in levels.items())
        yield f"At other training losses: {words}."


def _on(task: str, tasks: Mapping[str, object]) -> str:
    """Return the task as the beginning of a sentence, where there are several."""
    return f"On {task}, " if len(tasks) > 1 else ""


def _difference_row(one: Mapping[str, Any], several: bool) -> ForestRow:
    """Return a difference of test losses as a line of the forest plot."""
    difference, ends = interval_texts(one["difference"], one["low"], one["high"])
    return ForestRow(
        label=f"{one['a']} minus {one['b']}" + (f" on {one['task']}" if several else ""),
        value=number(one["difference"]),
        low=number(one["low"]),
        high=number(one["high"]),
        dots=tuple(number(d) for d in one["differences"]),
        words=f"{difference} ({ends})" if ends else difference,
    )
