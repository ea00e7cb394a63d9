"""A verdict as a section: question, status, sentence, rows, facts, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from lossscope.landscape.verdicts.verdict import Row, Verdict
from lossscope.reports.comparison.facts import facts, test_loss_figure
from lossscope.reports.comparison.rows import bound_table, forest, row_table
from lossscope.reports.comparison.trajectories import noise_figures, sharpness_figures
from lossscope.reports.content import Section
from lossscope.reports.figure_content import FigureData

__all__ = ["outcome", "section", "setting", "status_words"]

_OUTCOMES: Final = {"SUPPORTED": True, "CONTRADICTED": False, "EQUIVALENT": False, "MIXED": False}


def section(verdict: Verdict, *, question: str = "") -> Section:
    """Return a verdict as a section.

    Args:
        verdict: The verdict.
        question: Heading; by default made from the arms, or the claim's own words.
    """
    table = bound_table(verdict) if verdict.kind == "bound" else row_table(verdict)
    return Section(
        key=verdict.claim,
        question=question or _question(verdict),
        status=status_words(verdict),
        outcome=outcome(verdict),
        sentence=verdict.sentence,
        setting=setting(verdict),
        tables=(table,) if table.rows else (),
        claim=_quoted(verdict),
        facts=facts(verdict),
        change=verdict.change,
        figures=_figures(verdict),
        data=_data(verdict),
    )


def outcome(verdict: Verdict) -> bool | None:
    """Return True if the claim is supported, False if the runs say otherwise, None if they cannot tell."""
    return _OUTCOMES.get(verdict.status)


def status_words(verdict: Verdict) -> str:
    """Return the status in capitals, without underscores."""
    return verdict.status.replace("_", " ")


def setting(verdict: Verdict) -> str:
    """Return what was compared: arms, task, level, and the number of pairs."""
    rows = verdict.rows
    arms = " and ".join(f"{a} against {b}" for a, b in dict.fromkeys((row.a, row.b) for row in rows))
    tasks = list(verdict.pairs) or list(dict.fromkeys(row.task for row in rows))
    words = f"{arms} on {_listed(tasks)}" if arms else _listed(tasks)
    if verdict.level is not None:
        words += f" at training loss {verdict.level:g}"
    counts = list(verdict.pairs.values())
    if not counts:
        return words
    pairs = f"{_listed([str(one) for one in counts])} {'pair' if counts == [1] else 'pairs'} of seeds"
    return f"{words}: {pairs}" if words else pairs


def _question(verdict: Verdict) -> str:
    """Return the question that the verdict answers."""
    pairs = list(dict.fromkeys((row.a, row.b) for row in verdict.rows))
    if verdict.kind != "flatter" or not pairs:
        return verdict.text or verdict.claim or "Comparison"
    first = _listed(list(dict.fromkeys(a for a, _ in pairs)))
    second = _listed(list(dict.fromkeys(b for _, b in pairs)))
    return f"Does {first} find flatter minima than {second}?"


def _quoted(verdict: Verdict) -> str:
    """Return the claim in its own words with its source, where it has some."""
    if not verdict.claim or not verdict.text:
        return ""
    return f"\u201c{verdict.text}\u201d{f' ({verdict.source})' if verdict.source else ''}"


def _figures(verdict: Verdict) -> tuple[FigureData, ...]:
    """Return the figures of a verdict; those along the training for each task, since losses of tasks differ."""
    ends = [forest(verdict) if verdict.kind == "flatter" else None, test_loss_figure(verdict)]
    first, last = ((one,) if one is not None else () for one in ends)
    return (*first, *noise_figures(verdict), *sharpness_figures(verdict), *last)


def _data(verdict: Verdict) -> dict[str, object]:
    """Return the verdict for programs; each row has its reasons in words too."""
    return {**asdict(verdict), "rows": [_row(row) for row in verdict.rows]}


def _row(row: Row) -> dict[str, object]:
    """Return a row for programs."""
    return {**asdict(row), "why": row.why}


def _listed(names: Sequence[str]) -> str:
    """Return names as text: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
