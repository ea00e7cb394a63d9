"""First screen: a dozen statements on what happened, what is missing and what to look at next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.reports.content import Report, Statement
from lossscope.reports.first_screen.curvature import curvature, unconverged
from lossscope.reports.first_screen.outcome import outcome
from lossscope.reports.first_screen.steps import steps
from lossscope.reports.shared.diagnosis import diagnosis_statements
from lossscope.reports.shared.quantities import overhead_percent

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["with_first_screen"]

_COSTLY: Final = 50.0  # percent of the wall time that recording took, above which it is told


@np.errstate(all="ignore")  # numbers of a diverged run overflow
def with_first_screen(report: Report, runs: Sequence[Run], about: Sequence[Statement] | None = None) -> Report:
    """Return a report with the statements of its first screen, the most important first.

    Args:
        report: A complete report of the runs; what it lacks is told.
        runs: The runs.
        about: Statements on what the report is about. Default: those on sharpness and on the steps.

    Returns:
        The report. A statement points to a figure of the report only.
    """
    if about is None:
        about = (*curvature(runs), *unconverged(runs), *steps(runs))
    found = (
        *outcome(runs),
        *about,
        *diagnosis_statements(runs),
        *_missing(report),
        *_costly(runs),
    )
    shown = {figure.key for figure in report.figures}
    kept = tuple(replace(one, figure=one.figure if one.figure in shown else "") for one in found)
    return replace(report, summary=(*kept, _next(report, runs, kept)))


def _missing(report: Report) -> tuple[Statement, ...]:
    """Return the number of results that are missing but might have been there, and the first with its reason."""
    missing = [one for one in report.missing if not one.by_nature]
    if not missing:
        return ()
    first, more = missing[0], len(missing) - 1
    also = f" {more} more below." if more else ""
    return (Statement(f"Missing: {first.what}. {first.how.rstrip('.')}.{also}", "look"),)


def _costly(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return a statement if recording took most of the time."""
    shares = [share for run in runs if (share := overhead_percent(run)) is not None]
    if not shares or max(shares) <= _COSTLY:
        return ()
    return (Statement(f"Recording took {max(shares):.0f} % of the time (overhead= limits it).", "look"),)


def _next(report: Report, runs: Sequence[Run], found: Sequence[Statement]) -> Statement:
    """Return the command to run next, by what stands out."""
    if any(one.severity == "act" for one in found) and report.kind != "dynamics":
        return Statement("Next: `lossscope report dynamics` shows the steps before the end.", "fine")
    arms = list(by_arm(runs))
    if len(arms) > 1:
        command = shlex.join(["lossscope", "compare", *arms[:2], "--in", "FOLDER"])
        words = f"Next: `{command}` tells which is flatter at equal training loss."
        return Statement(words, "fine")
    if report.kind != "sharpness":
        return Statement("Next: `lossscope report sharpness` has every evaluation with its error.", "fine")
    return Statement(
        "Next: `lossscope report flatness` has measures that do not depend on the scale of weights.", "fine"
    )
