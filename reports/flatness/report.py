"""Flatness report: the four numbers that verdicts use, what they are over the loss, and whatever else a run has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.measures.catalogue import group_of
from lossscope.reports.content import Cell, Column, Missing, Report
from lossscope.reports.first_screen.screen import with_first_screen
from lossscope.reports.flatness.against_loss import against_loss_figures
from lossscope.reports.flatness.four_numbers import FOUR, NAMES, arms_table, numbers_table, runs_table
from lossscope.reports.flatness.guard_table import guard_table
from lossscope.reports.flatness.noise_curve import noise_curve_figure
from lossscope.reports.flatness.rest import Rest, rest_of, rest_table
from lossscope.reports.flatness.secondary import secondary_tables
from lossscope.reports.flatness.statements import statements
from lossscope.reports.shared.completed import completed
from lossscope.reports.shared.figures import loss_figure
from lossscope.reports.shared.findings import losses_matched, precise
from lossscope.reports.shared.loss_unit import LOSS, in_loss_unit
from lossscope.reports.shared.norm_tables import norm_table, tensor_norm_table
from lossscope.reports.shared.precision import precision_notes
from lossscope.reports.shared.provenance import ending_notes, missing_curvature, provenance, runs_in_words
from lossscope.reports.shared.trajectory import trajectory_tables

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["flatness"]

_NO_COMPARISON: Final = (
    "Arms are not compared here: the evaluations are at equal steps, not at matched train loss. `lossscope compare A "
    "B` compares these four numbers, at equal loss and from 6 paired seeds on."
)
_NO_PROMISE: Final = "All of these numbers depend on the loss level, and none predicts generalization by itself."
_BEFORE: Final = {"adaptive_trace"}  # recorded by earlier versions too, which had no other of its group
_GROUPS: Final = {
    "adaptive": "Adaptive λ_max",
    "balanced": "λ_max and trace at the balanced point",
    "basin": "Basin radius σ* and noise curve",
    "guard": "Guard: the same numbers after a random rescaling",
}
_TRAJECTORY: Final = (
    ("loss", "train loss", LOSS),
    *((measure, NAMES[measure], LOSS) for measure in FOUR),
)


@np.errstate(all="ignore")  # numbers of a diverged run overflow; what is not finite is shown as missing
def flatness(runs: Sequence[Run]) -> Report:
    """Return the flatness report: the four numbers of verdicts, the guard, rest, norms, and the other measures.

    Args:
        runs: Any runs; live, crashed and failed runs are allowed.

    Returns:
        The report as data. It does not compare arms and states why.
    """
    rests = {run.name: rest_of(run) for run in runs}
    report = Report(
        kind="flatness",
        title="Flatness",
        subtitle=runs_in_words(runs),
        findings=(precise(runs, "adaptive_trace", "the adaptive trace"), losses_matched(runs)),
        tables=in_loss_unit(
            (
                *arms_table(runs),
                *numbers_table(runs),
                runs_table(runs, _at_rest(rests)),
                *trajectory_tables(runs, _TRAJECTORY),
                *rest_table(runs, rests),
                *guard_table(runs),
                *norm_table(runs),
                *tensor_norm_table(runs),
                *secondary_tables(runs),
            ),
            runs,
        ),
        figures=(*noise_curve_figure(runs), *against_loss_figures(runs), loss_figure(runs)),
        notes=(*ending_notes(runs), *precision_notes(runs), _NO_COMPARISON, _NO_PROMISE),
        missing=(*missing_curvature(runs), *_not_measured(runs)),
        provenance=provenance(runs),
    )
    return with_first_screen(completed(report, runs), runs, statements(runs, rests))


def _at_rest(rests: Mapping[str, Rest]) -> tuple[tuple[Column, Callable[[Run], Cell]], ...]:
    """Return the column of runs that says whether each ended at rest."""
    meaning = "yes, no, or not known from what was recorded"
    return ((Column("rest", "at rest", "", meaning, words=True), lambda run: rests[run.name].word),)


def _not_measured(runs: Sequence[Run]) -> tuple[Missing, ...]:
    """Return an entry for each group of the panel that no run has, with the command that measures it."""
    there = {group_of(str(name)) for run in runs for name in run.probes["measure"].unique() if name not in _BEFORE}
    return tuple(
        Missing(what, f"Measure a checkpoint: lossscope probe RUN --measures {group}")
        for group, what in _GROUPS.items()
        if group not in there
    )
