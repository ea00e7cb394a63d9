"""Document of the contrasts of a study: what each part does to sharpness, test loss and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.series import Series, spectrum_series, step_series, synced_series, tensor_series
from lossscope.landscape.verdicts.contrasts import Contrast, ContrastTable
from lossscope.landscape.verdicts.notes import unpaired
from lossscope.landscape.verdicts.verdict import PANEL, Row
from lossscope.reports.comparison.provenance import provenance
from lossscope.reports.comparison.rows import MISSING, interval_texts, row_texts
from lossscope.reports.comparison.section import section
from lossscope.reports.content import Cell, Column, Document, Section, Table
from lossscope.reports.shared.arm_colors import document_in_color
from lossscope.reports.shared.quantities import mean_and_range, median_and_range

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["contrasts_report"]

_LABELS: Final = (Column("part", "part", words=True), Column("arms", "with / without", words=True))
_DIFFERS: Final = "With a star: the interval of the test loss leaves out 0."
_UNEQUAL: Final = (
    "Unequal: the two sides differ by more than 10 % in gradients or ascents up to the level, so the ratio of their "
    "sharpness is not that of the part alone."
)


def contrasts_report(
    table: ContrastTable,
    runs: Sequence[Run],
    *,
    version: str,
    title: str = "What each part does",
    lead: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Document:
    """Return the document of the contrasts of a study.

    Args:
        table: The contrasts, judged together.
        runs: The runs of all arms.
        version: Version of lossscope.
        title: First line.
        lead: Sentences about the study, such as how many runs are there.
        commands: Commands that make this document again.
    """
    tables = (_sharpness(table), _cost(table), *_inside(table, runs))
    document = Document(
        kind="contrasts",
        title=title,
        subtitle=" ".join([*lead, _terms(table)]),
        sections=tuple(_section(one) for one in table.contrasts),
        provenance=provenance(runs, version),
        tables=tables,
        notes=(*table.notes, *_unjudged(table), *_open(table), *_left_out(table)),
        reproduce=tuple(commands),
    )
    return document_in_color(document, runs)


def _terms(table: ContrastTable) -> str:
    """Return the terms of the table: level, direction, confidence."""
    level = "" if table.level is None else f" at training loss {table.level:g}"
    each = f"{100 * table.confidence:.4g} %"
    counts = dict.fromkeys(one for line in table.contrasts for one in line.verdict.pairs.values())
    pairs = f", {next(iter(counts))} pairs of seeds" if len(counts) == 1 else ""
    return (
        f"Sharpness{level} with the part over that without it, below 1: flatter with it{pairs}. 95 % intervals for the "
        f"table as a whole ({each} each)."
    )


def _section(contrast: Contrast) -> Section:
    """Return a contrast as a section of its own, under the name of its part."""
    question = f"{contrast.name}: {contrast.with_part} against {contrast.without}"
    return replace(section(replace(contrast.verdict, claim=""), question=question), key=contrast.name)


def _sharpness(table: ContrastTable) -> Table:
    """Return the ratios of the panel and the verdict of each contrast."""
    columns = (
        *_LABELS,
        *(Column(one.measure, one.label) for one in PANEL),
        Column("verdict", "verdict", words=True),
    )
    rows = [line for one in table.contrasts for line in _lines(one)]
    return Table("contrasts", "Sharpness", columns, tuple(rows))


def _lines(contrast: Contrast) -> list[tuple[Cell, ...]]:
    """Return the lines of a contrast: one for each task."""
    rows = [row for row in contrast.verdict.rows if row.counts]
    tasks = list(dict.fromkeys(row.task for row in rows)) or [""]
    lines: list[tuple[Cell, ...]] = []
    for place, task in enumerate(tasks):
        found = {row.measure: row for row in rows if row.task == task}
        name = contrast.name if len(tasks) == 1 else f"{contrast.name} ({task})"
        ratios = (_ratio(found.get(one.measure)) for one in PANEL)
        lines.append((name, _arms(contrast), *ratios, _word(contrast) if not place else "as above"))
    return lines


def _word(contrast: Contrast) -> str:
    """Return the verdict in few words; the reason why nothing was judged is a note."""
    return "not judged" if contrast.verdict.status == "NOT_JUDGED" else contrast.word


def _unjudged(table: ContrastTable) -> list[str]:
    """Return a sentence for each contrast that was not judged; one for all that share a reason."""
    names: dict[str, list[str]] = {}
    for one in table.contrasts:
        if one.verdict.status == "NOT_JUDGED":
            names.setdefault(one.verdict.sentence, []).append(one.name)
    return [f"Not judged: {'; '.join(parts)}. {sentence}" for sentence, parts in names.items()]


def _open(table: ContrastTable) -> list[str]:
    """Return a sentence for each reason why rows of judged contrasts are open."""
    names: dict[str, list[str]] = {}
    for one in table.contrasts:
        if one.verdict.status == "NOT_JUDGED":
            continue
        texts = [reason.text for row in one.verdict.rows if row.word == "open" for reason in row.reasons]
        for text in dict.fromkeys(texts):
            names.setdefault(text, []).append(one.name)
    return [f"Open: {'; '.join(parts)}. {text[0].upper()}{text[1:]}." for text, parts in names.items()]


def _left_out(table: ContrastTable) -> list[str]:
    """Return the number of pairs of each contrast, where they differ, with the runs that have no partner."""
    pairs = {
        one.name: " and ".join(map(str, one.verdict.pairs.values())) for one in table.contrasts if one.verdict.pairs
    }
    said = []
    if len(set(pairs.values())) > 1:
        said.append(f"Pairs of seeds: {'; '.join(f'{name} {count}' for name, count in pairs.items())}.")
    alone = dict.fromkeys(run for one in table.contrasts for run in one.verdict.figures.get("unpaired", ()))
    return [*said, *(note.text for note in unpaired(list(alone)))]


def _ratio(row: Row | None) -> str:
    """Return a ratio with its interval as text."""
    if row is None or row.word == "open":
        return MISSING
    value, ends = row_texts(row)
    return value if ends == MISSING else f"{value} [{ends.replace(' - ', ', ')}]"


def _cost(table: ContrastTable) -> Table:
    """Return test loss, gradients and ascents up to the level of each contrast."""
    columns = (
        *_LABELS,
        Column("test_loss", "test loss, difference", "1"),
        Column("gradients", "gradients up to the level"),
        Column("ascents", "ascents up to the level"),
        Column("cost", "", words=True),
    )
    rows = tuple(
        (
            *(one.name, _arms(one), _test_loss(one), _both(one, "gradients"), _both(one, "ascents")),
            "unequal" if one.cost else "",
        )
        for one in table.contrasts
    )
    notes = [_DIFFERS] if any(one.test_loss_differs for one in table.contrasts) else []
    notes += [_UNEQUAL] if any(one.cost for one in table.contrasts) else []
    several = [list(one.verdict.pairs) for one in table.contrasts if len(one.verdict.pairs) > 1]
    notes += [f"All of it on {several[0][0]}, the first of {len(several[0])} tasks."] if several else []
    return Table("cost", "Test loss, and what each side spent up to the level", columns, rows, " ".join(notes))


def _test_loss(contrast: Contrast) -> str:
    """Return the difference of the test losses, with a star where its interval leaves out 0."""
    if not math.isfinite(contrast.test_loss):
        return MISSING
    value, ends = interval_texts(contrast.test_loss, contrast.test_loss_low, contrast.test_loss_high)
    return " ".join(
        [value, *([f"[{ends.replace(' to ', ', ')}]"] if ends else []), *(["*"] if contrast.test_loss_differs else [])]
    )


def _both(contrast: Contrast, kind: str) -> str:
    """Return a mean count of both arms, on the first task."""
    costs: Mapping[str, Any] = next(iter(contrast.verdict.figures.get("cost", {}).values()), {})
    both = [costs.get(arm, {}).get(kind, math.nan) for arm in (contrast.with_part, contrast.without)]
    return " / ".join(f"{one:,.0f}" if math.isfinite(one) else MISSING for one in both)


def _inside(table: ContrastTable, runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return shear angle, entropy and Fisher energy of each arm, as far as they were recorded."""
    names = dict.fromkeys(name for one in table.contrasts for name in (one.with_part, one.without))
    arms = {name: members for name, members in by_arm(runs).items() if name in names}
    rows: list[tuple[Cell, ...]] = []
    for name, members in arms.items():
        rows.append((name, *(median_and_range(_mean(of(run)) for run in members) for _, of in _INSIDE)))
    kept = [place for place in range(1, len(_INSIDE) + 1) if any(_there(row[place]) for row in rows)]
    if not kept:
        return ()
    columns = (Column("arm", "arm", words=True), *(_INSIDE[place - 1][0] for place in kept))
    shown = tuple((row[0], *(row[place] for place in kept)) for row in rows)
    note = "Means over the recorded steps of a run; medians [ranges] over seeds."
    return (Table("inside", "Steps of each arm", columns, shown, note),)


def _mean(series: Series) -> float | None:
    """Return the mean of a series over its steps; None if it has no number."""
    return mean_and_range([float(one) for one in series.y if math.isfinite(one)]).value


def _there(cell: Cell) -> bool:
    """Return True if a cell has a value."""
    return getattr(cell, "value", None) is not None


def _degrees(series: Series) -> Series:
    """Return a series of angles in degrees."""
    return replace(series, y=np.degrees(series.y))


_INSIDE: Final[tuple[tuple[Column, Callable[[Run], Series]], ...]] = (
    (
        Column("shear_angle", "shear angle", "°", "between the base and the adversarial gradient, at ascents"),
        lambda run: _degrees(synced_series(run, "adversarial_angle")),
    ),
    (
        Column("turn", "turn by the shear", "°", "between the update and the update without the injected shear"),
        lambda run: _degrees(step_series(run, "injection_angle")),
    ),
    (
        Column("entropy", "entropy of the update", "1", "energy entropy over ln r, mean over matrices"),
        lambda run: spectrum_series(run, "update", "entropy_energy"),
    ),
    (
        Column("energy", "Fisher energy", "1", "E / √numel, mean over matrices"),
        lambda run: tensor_series(run, "energy_rms"),
    ),
)


def _arms(contrast: Contrast) -> str:
    """Return both arms."""
    return f"{contrast.with_part} / {contrast.without}"
