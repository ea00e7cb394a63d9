"""Completion of a report: what every report says of its runs, whatever it is about.

These are divergence, the data behind the curvature, and whether ranges are over seeds or over runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeGuard

from lossscope.landscape.analysis.arms import has_seeds
from lossscope.landscape.analysis.divergence import divergence_of
from lossscope.reports.content import Cell, Column, Report, Table
from lossscope.reports.figure_content import FigureData
from lossscope.reports.shared.arm_colors import report_in_color
from lossscope.reports.shared.diagnosis import diagnosis_table, false_alarm_table
from lossscope.reports.shared.divergence import DIVERGENCE_NOTE, alert, losses_kept_finite, without_lost_evaluations
from lossscope.reports.shared.findings import NOT_RECORDED
from lossscope.reports.shared.other_data import other_data_table
from lossscope.reports.shared.provenance import listed

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["completed", "curvature_samples", "sample_notes"]

_SEED: Final = re.compile(r"(?<![\w-])seed(s?)(?![\w-])")
_COUNTED: Final = re.compile(r"\b(\d+|one) seed(s?)\b")  # beside names of arms
_COUNT: Final = re.compile(r"(\d+ )?seeds?")
_RUNS_NOTE: Final = (
    "Seeds were not recorded, so ranges and intervals are over runs: whether these are independent is not known. Pass "
    "seeds= to the Recorder."
)


def completed(report: Report, runs: Sequence[Run]) -> Report:
    """Return a report with its first line, diagnosis, finding on divergence, words for seeds and samples, and its arms.

    Args:
        report: The report of the runs.
        runs: The runs.

    Returns:
        The report. The finding on divergence is the first if a run diverged, else the last. A finding that is true is
        open if the loss of a run stopped being finite, and one about what no run recorded is left out. A note of the
        report, and one under several tables, stands once. Where no run recorded seeds, the report speaks of runs.
    """
    diverged = [(run.name, found) for run in runs if (found := divergence_of(run)) is not None]
    recorded = [one for one in report.findings if one.numbers != NOT_RECORDED]
    kept, others = losses_kept_finite(runs, diverged), [without_lost_evaluations(one, diverged) for one in recorded]
    report = report_in_color(report, runs)
    report = replace(
        report,
        alert=alert(diverged),
        findings=(kept, *others) if diverged else (*others, kept),
        tables=_each_note_once(
            (
                *diagnosis_table(runs, report.kind),
                *report.tables,
                *other_data_table(runs, report.kind),
                *false_alarm_table(runs, report.kind),
            ),
            report.notes,
        ),
        figures=tuple(replace(one, caption=_without(one.caption, report.notes)) for one in report.figures),
        notes=(*report.notes, *sample_notes(runs), *([DIVERGENCE_NOTE] if diverged else [])),
    )
    unknown = [run.name for run in runs if not has_seeds(run)]
    if len(unknown) < len(runs):
        note = f"{listed(unknown)} recorded no seeds: what is called a seed is a run there."
        return replace(report, notes=(*report.notes, note)) if unknown else report
    report = replace(
        report,
        findings=tuple(
            replace(one, claim=_of_runs(one.claim), numbers=_COUNTED.sub(r"\1 run\2", one.numbers))
            for one in report.findings
        ),
        tables=tuple(map(_table_of_runs, report.tables)),
        figures=tuple(map(_figure_of_runs, report.figures)),
        notes=tuple(map(_of_runs, report.notes)),
    )
    return replace(report, notes=(*report.notes, _RUNS_NOTE)) if len(runs) > 1 else report


def _each_note_once(tables: Sequence[Table], notes: Sequence[str]) -> tuple[Table, ...]:
    """Return the tables without the notes of the report, and without the note of an earlier table."""
    seen = set[str]()
    found: list[Table] = []
    for table in tables:
        note = _without(table.note, notes)
        found.append(replace(table, note="" if note in seen else note))
        seen.add(note)
    return tuple(found)


def _without(words: str, notes: Sequence[str]) -> str:
    """Return a text without the notes that stand elsewhere in the report."""
    for note in notes:
        words = words.replace(note, "")
    return " ".join(words.split())


def sample_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return a note for each number of samples on which runs measured their curvature, as far as it was recorded."""
    found: dict[str, list[str]] = {}
    for run in runs:
        words = curvature_samples(run)
        if words is not None:
            found.setdefault(words, []).append(run.name)
    return tuple(
        f"Curvature is measured on {words}{'' if len(names) == len(runs) else f' in {listed(names)}'}."
        for words, names in found.items()
    )


def curvature_samples(run: Run) -> str | None:
    """Return on how many samples the curvature of a run was measured, of how many for training; None if unknown."""
    config = run.manifest.get("config")
    config = config if isinstance(config, Mapping) else {}
    used, trained = (
        next((one for part in (run.manifest, config) if _is_count(one := part.get(key))), None)
        for key in ("curvature_samples", "training_samples")
    )
    if used is None:
        return None
    if trained is None:
        return f"{used} samples"
    return f"all {trained} training samples" if used == trained else f"{used} of {trained} training samples"


def _is_count(value: object) -> bool:
    """Return True for a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _of_runs(words: str) -> str:
    """Return a text with "run" in place of "seed"."""
    return _SEED.sub(r"run\1", words)


def _table_of_runs(table: Table) -> Table:
    """Return a table whose title, note and columns speak of runs."""
    columns: tuple[Column, ...] = tuple(
        replace(one, title=_of_runs(one.title), meaning=_of_runs(one.meaning)) for one in table.columns
    )
    rows = tuple(tuple(_of_runs(one) if _is_count_of_seeds(one) else one for one in row) for row in table.rows)
    return replace(table, title=_of_runs(table.title), note=_of_runs(table.note), columns=columns, rows=rows)


def _is_count_of_seeds(cell: Cell) -> TypeGuard[str]:
    """Return True for a cell such as `3 seeds`; names of arms are left alone."""
    return isinstance(cell, str) and _COUNT.fullmatch(cell) is not None


def _figure_of_runs(figure: FigureData) -> FigureData:
    """Return a figure whose caption speaks of runs."""
    return replace(figure, caption=_of_runs(figure.caption))
