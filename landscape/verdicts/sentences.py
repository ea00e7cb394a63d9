"""Sentences of verdicts: one template for each status, and what would change the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from lossscope.landscape.verdicts.rule import LEAST_PAIRS, MOST_PAIRS, pairs_needed, smallest_effect
from lossscope.landscape.verdicts.verdict import Reason, Row, Status

__all__ = ["at_least", "changes", "decisive_row", "joined", "margin_words", "sentence", "spoken", "too_few"]

_NUMBERS: Final = ("no", "one", "two", "three", "four")


def sentence(
    status: Status,
    a: str,
    b: str,
    rows: Sequence[Row],
    *,
    small: bool,
    pairs: Mapping[str, int],
    level: float | None,
    reasons: Sequence[Reason] = (),
    margin: float,
    lowest: float | None = None,
    steps: int | None = None,
) -> str:
    """Return the sentence of a verdict on a claim of kind `flatter`.

    Args:
        status: The status.
        a: Arms of the first side, in words.
        b: Arms of the second side.
        rows: Rows that count.
        small: Every row lies within the margin.
        pairs: Number of pairs by task.
        level: Training loss; None if it could not be chosen.
        reasons: Reasons of open rows, or why nothing was judged.
        margin: Ratio below which a difference is small.
        lowest: Lowest training loss that all runs reach; None if unknown.
        steps: Steps of the longest run; None if unknown.
    """
    where = _where(pairs, level)
    match status:
        case "SUPPORTED" | "CONTRADICTED":
            word = "flatter" if status == "SUPPORTED" else "sharper"
            size = f"but by less than {margin_words(margin)} on each" if small else f"by at least {at_least(rows)}"
            return f"{a} is {word} than {b} {_on_all(rows)}, {size} ({where})."
        case "EQUIVALENT":
            less = f"differ by less than {margin_words(margin)} {_on_all(rows)}"
            return f"{a} and {b} {less}{_if_anything(a, rows)} ({where})."
        case "MIXED":
            return f"It depends on what flat means: {a} is {_mixed(rows)} ({where})."
        case "INCONCLUSIVE":
            return _inconclusive(rows, pairs, level, reasons, margin, (lowest, steps))
        case "NOT_JUDGED":
            return _not_judged(reasons)


def at_least(rows: Sequence[Row]) -> str:
    """Return the interval end nearest 1 over rows of one sign as a per cent, rounded down: it is a lower bound."""
    ends = [1 - row.high if row.high < 1 else row.low - 1 for row in rows]
    percent = 100 * min(ends)
    return f"{math.floor(percent + 1e-9)} %" if percent >= 1 else f"{math.floor(10 * percent + 1e-9) / 10:g} %"


def margin_words(margin: float) -> str:
    """Return a margin such as 1.25 as a per cent."""
    return f"{100 * (margin - 1):.3g} %"


def joined(words: Iterable[str]) -> str:
    """Return words as a list with `and`."""
    *first, last = [*words] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def decisive_row(rows: Sequence[Row], margin: float) -> Row | None:
    """Return the row without gaps that is undecided and needs the most pairs; None if there is none."""
    unclear = [row for row in rows if row.word == "unclear" and math.isfinite(row.spread)]
    return max(unclear, key=lambda row: (_needed(row, margin) or math.inf, row.high - row.low), default=None)


def changes(status: Status, b: str, rows: Sequence[Row], *, margin: float, untried: Sequence[str]) -> tuple[str, ...]:
    """Return sentences that say what would change a verdict.

    Args:
        status: The status.
        b: Arms of the second side, in words.
        rows: Rows that count.
        margin: Ratio below which a difference is small.
        untried: Codes of notes: ONE_TASK, ONE_RATE.
    """
    if status == "INCONCLUSIVE":
        row = decisive_row(rows, margin)
        return () if row is None else (_power(row, margin),)
    if status == "MIXED":
        sides = [(word, _labels(rows, word)) for word in ("flatter", "sharper", "small")]
        named = {"small": "no different"}
        return (
            "Another choice of measures: "
            + "; ".join(f"{named.get(word, word)} on {labels}" for word, labels in sides if labels)
            + ".",
        )
    tried = {"ONE_TASK": "another task", "ONE_RATE": f"another learning rate of {b}"}
    missing = [words for code, words in tried.items() if code in untried]
    return (f"Not tried: {'; '.join(missing)}.",) if missing and status != "NOT_JUDGED" else ()


def _power(row: Row, margin: float) -> str:
    """Return the sentence on the effect that a design sees, and on the pairs that the effect seen needs."""
    seen = smallest_effect(row.spread, row.n)
    more = _needed(row, margin)
    words = f"more than {MOST_PAIRS}" if more is None else f"about {more}"
    return (
        f"{row.label[0].upper()}{row.label[1:]}: {row.n} pairs whose ratios differ by {100 * row.spread:.2g} % see a "
        f"ratio of {seen:.2g} or less in 80 of 100 tries; the {row.ratio:.2f} seen needs {words} pairs."
    )


def _needed(row: Row, margin: float) -> int | None:
    """Return the number of pairs that would decide a row."""
    return pairs_needed(math.log(row.ratio), row.spread, margin)


def _where(pairs: Mapping[str, int], level: float | None) -> str:
    """Return tasks, level and numbers of pairs in words."""
    counts = [*pairs.values()]
    same = len(set(counts)) <= 1
    number = str(counts[0]) if counts and same else joined(map(str, counts))
    each = " each" if same and len(counts) > 1 else ""
    loss = "" if level is None else f"loss {level:g}, "
    return f"{joined(pairs)}, {loss}{number} pair{'s' if number != '1' else ''}{each}"


def _on_all(rows: Sequence[Row]) -> str:
    """Return the measures of the rows in words."""
    labels = [*dict.fromkeys(row.label for row in rows)]
    if len(labels) < 3:
        return f"on {labels[0]}" if len(labels) == 1 else "on both measures"
    return f"on all {_NUMBERS[len(labels)]} measures"


def _if_anything(a: str, rows: Sequence[Row]) -> str:
    """Return a clause on the direction of rows that leave out 1, if they agree."""
    counts = {word: sum(row.word == word for row in rows) for word in ("flatter", "sharper")}
    found = [word for word, count in counts.items() if count]
    return f"; if anything {a} is {found[0]} ({counts[found[0]]} of {len(rows)})" if len(found) == 1 else ""


def _mixed(rows: Sequence[Row]) -> str:
    """Return the rows on each side in words."""
    words = (("flatter", "flatter"), ("sharper", "sharper"), ("small", "no different"), ("unclear", "unclear"))
    parts = [f"{shown} on {labels}" for word, shown in words if (labels := _labels(rows, word))]
    parts += [f"not measured on {labels}" for labels in [_labels(rows, "open")] if labels]
    return f"{', '.join(parts[:-1])}, and {parts[-1]}" if len(parts) > 1 else parts[0]


def _labels(rows: Sequence[Row], word: str) -> str:
    """Return the names of the rows with a word; with task and arms where these differ between rows."""
    several = len({(row.task, row.a, row.b) for row in rows}) > 1
    names = [f"{row.label}{f' [{row.task}, {row.a} / {row.b}]' if several else ''}" for row in rows if row.word == word]
    return f"({'; '.join(names)})" if names else ""


def _inconclusive(
    rows: Sequence[Row],
    pairs: Mapping[str, int],
    level: float | None,
    reasons: Sequence[Reason],
    margin: float,
    remedies: tuple[float | None, int | None],
) -> str:
    """Return the sentence of rows that are not decided."""
    missing = next((one for one in reasons if one.code in ("MISSING_LEVEL", "NOT_MEASURED", "NOT_POSITIVE")), None)
    if missing is not None:
        return f"{missing.text}. {_remedy(missing, level, *remedies)}"
    row = decisive_row(rows, margin)
    counts = f"{joined(str(one) for one in dict.fromkeys(pairs.values()))} pairs"
    if row is None:
        return f"{counts} cannot tell."
    needed = _needed(row, margin)
    more = f"About {needed}" if needed is not None else f"Not even {MOST_PAIRS}"
    several = len({(one.task, one.a, one.b) for one in rows}) > 1
    place = f" [{row.task}, {row.a} / {row.b}]" if several else ""
    return (
        f"{counts} cannot tell: {row.label}{place} lies between {row.low:.2f} and {row.high:.2f}. {more} pairs would, "
        "if the effect is what it seems."
    )


def _remedy(missing: Reason, level: float | None, lowest: float | None, steps: int | None) -> str:
    """Return the way out of open rows."""
    match missing.code:
        case "MISSING_LEVEL":
            other = lowest is not None and level is not None and lowest > level
            claim = f", or claim at {lowest:g}, which all reach" if other else ""
            longer = "" if steps is None else f" --steps {2 * steps}"
            return f"Train them longer (`lossscope train --resume{longer}`){claim}."
        case "NOT_MEASURED":
            return "Measure it at the same steps (`lossscope probe`), or train with it among the measures."
        case _:
            return "A ratio of such numbers means nothing; claim at another loss, or leave the measure out."


def _not_judged(reasons: Sequence[Reason]) -> str:
    """Return the sentence of a claim that was not judged."""
    return spoken(reasons[0]) if reasons else "Nothing was judged."


def spoken(reason: Reason) -> str:
    """Return a reason as a sentence. One that begins with the name of an arm keeps it as it is."""
    first = reason.text[:1] if reason.code == "DIFFERENT_SETUP" else reason.text[:1].upper()
    return f"{first}{reason.text[1:]}{'' if reason.text.endswith('?') else '.'}"


def too_few(n: int, task: str = "") -> Reason:
    """Return the reason of too few pairs."""
    at = f" on {task}" if task else ""
    if n == 1:
        text = f"one pair of runs{at} decides nothing: seeds alone differ by about 10 %; {LEAST_PAIRS} pairs are needed"
        return Reason("TOO_FEW_PAIRS", text)
    text = (
        f"{n} pairs{at}, {LEAST_PAIRS} are needed: five equal signs come by chance once in 16. "
        f"`lossscope ablate GRID.toml --seeds {LEAST_PAIRS}`"
    )
    return Reason("TOO_FEW_PAIRS", text)
