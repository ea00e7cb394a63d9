"""Colors of arms: a function of the names of all arms of the runs, so that an arm has one color on every page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.verdicts.pairs import arms_of
from lossscope.reports.content import Arm, Document, Report, Section
from lossscope.reports.figure_content import Cloud, Curves, FigureData, Spectra

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["arms_in_color", "document_in_color", "report_in_color"]


def arms_in_color(arms: Mapping[str, Sequence[Run]]) -> tuple[Arm, ...]:
    """Return the arms with their colors, in the order given; a color is the rank of the name among all names."""
    ranks = {name: rank for rank, name in enumerate(sorted(arms))}
    return tuple(Arm(name, ranks[name], tuple(run.name for run in members)) for name, members in arms.items())


def report_in_color(report: Report, runs: Sequence[Run]) -> Report:
    """Return the report of the runs with its arms, and with their colors in every figure."""
    arms = arms_in_color(by_arm(runs))
    hues = _hues(arms)
    return replace(report, arms=arms, figures=tuple(_in_color(one, hues) for one in report.figures))


def document_in_color(document: Document, runs: Sequence[Run]) -> Document:
    """Return the document with the arms of all runs that it looked at, and with their colors in every figure."""
    arms: dict[str, list[Run]] = {}
    for of_task in arms_of(runs).values():
        for name, members in of_task.items():
            arms.setdefault(name, []).extend(members)
    found = arms_in_color(arms)
    hues = _hues(found)
    return replace(document, arms=found, sections=tuple(_section(one, hues) for one in document.sections))


def _hues(arms: Sequence[Arm]) -> dict[str, int]:
    """Return the color of each arm and of each run by name; an arm comes before a run of its name."""
    return {name: arm.hue for arm in arms for name in arm.runs} | {arm.name: arm.hue for arm in arms}


def _section(section: Section, hues: Mapping[str, int]) -> Section:
    return replace(section, figures=tuple(_in_color(one, hues) for one in section.figures))


def _in_color(figure: FigureData, hues: Mapping[str, int]) -> FigureData:
    """Return the figure with the color of each arm; a name that is none of an arm or a run keeps its own."""
    match figure:
        case Curves():
            return replace(figure, curves=tuple(replace(c, hue=hues.get(c.name, c.hue)) for c in figure.curves))
        case Cloud():
            return replace(figure, points=tuple(replace(p, hue=hues.get(p.name, p.hue)) for p in figure.points))
        case Spectra():
            return replace(figure, spectra=tuple(replace(s, hue=hues.get(s.name, s.hue)) for s in figure.spectra))
        case _:
            return figure
