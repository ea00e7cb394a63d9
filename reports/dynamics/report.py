"""Dynamics report: direction autocorrelation, trigger, gradient noise, step quality, shear, energy, remainders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.reports.content import Missing, Report
from lossscope.reports.dynamics.findings import model_predicted, shear_keeps_longer, trigger_beats_noise
from lossscope.reports.dynamics.minibatch_tables import (
    Memories,
    memories_of,
    memory_figure,
    memory_tables,
    missing_noise,
    noise_records,
    noise_table,
)
from lossscope.reports.dynamics.shear_energy_tables import (
    ascent_table,
    energy_table,
    missing_shear_and_energy,
    shear_table,
)
from lossscope.reports.dynamics.spike_tables import spike_tables
from lossscope.reports.dynamics.step_tables import (
    alignment_table,
    injection_table,
    layer_records,
    layer_table,
    step_quality_table,
    step_terms_table,
)
from lossscope.reports.dynamics.trigger_tables import missing_triggers, trigger_tables, triggers_of
from lossscope.reports.figure_content import FigureData
from lossscope.reports.first_screen.screen import with_first_screen
from lossscope.reports.shared.completed import completed
from lossscope.reports.shared.cost_tables import overhead_table, pace_table
from lossscope.reports.shared.figures import (
    energy_figure,
    loss_figure,
    phi_figure,
    shear_figure,
    shear_track_figure,
    trust_figure,
)
from lossscope.reports.shared.loss_unit import in_loss_unit
from lossscope.reports.shared.norm_tables import norm_table
from lossscope.reports.shared.notes import DYNAMICS_NOTE, INTERVAL_NOTE, VERDICT_NOTE
from lossscope.reports.shared.provenance import ending_notes, listed, missing_curvature, provenance, runs_in_words
from lossscope.reports.shared.step_quality import step_evaluations

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["dynamics"]

_PAIRS: Final = (
    "Record with preset standard or full and pass minibatches= to the Recorder; lossscope train --preset standard does "
    "both. The run must be longer than the first window."
)
_LAYERS: Final = "Record with preset standard or full, and pass objective= for the loss on fixed data."
_EVALUATIONS: Final = "An earlier lossscope recorded the curvature without it: record these runs again."
_ANGLES: Final = "Record with preset standard or full: the update is then also computed without the shear."


@np.errstate(all="ignore")  # numbers of a diverged run overflow; what is not finite is shown as missing
def dynamics(runs: Sequence[Run]) -> Report:
    """Return the dynamics report: autocorrelation, trigger, noise, step quality, alignment, shear, energy and layers.

    Args:
        runs: Any runs; live, crashed and failed runs are allowed.

    Returns:
        The report as data. A quantity that no run recorded has no table and no finding; `missing` states how to record
        it, unless no optimizer of the runs has it.
    """
    memories, triggers = memories_of(runs), triggers_of(runs)
    noises, layers = noise_records(runs), layer_records(runs)
    report = Report(
        kind="dynamics",
        title="Training dynamics",
        subtitle=runs_in_words(runs),
        findings=tuple(
            finding
            for finding, there in (
                (shear_keeps_longer(memories), any(one and "shear" in one.directions for one in memories.values())),
                (trigger_beats_noise(triggers), bool(triggers)),
                (model_predicted(runs), any(map(step_evaluations, runs))),
            )
            if there
        ),
        tables=in_loss_unit(
            (
                *memory_tables(memories),
                *trigger_tables(triggers),
                *noise_table(noises),
                *step_quality_table(runs),
                *step_terms_table(runs),
                *alignment_table(runs),
                *shear_table(runs),
                *ascent_table(runs),
                *injection_table(runs),
                *energy_table(runs),
                *spike_tables(runs),
                *layer_table(layers),
                *norm_table(runs),
                *pace_table(runs),
                *overhead_table(runs),
            ),
            runs,
        ),
        figures=_figures(runs, memories),
        notes=(
            *ending_notes(runs),
            DYNAMICS_NOTE,
            *([INTERVAL_NOTE] if triggers or noises or any(memories.values()) else []),
            VERDICT_NOTE,
        ),
        missing=(*_missing(runs), *missing_shear_and_energy(runs), *missing_triggers(triggers), *missing_noise(noises)),
        provenance=provenance(runs),
    )
    return with_first_screen(completed(report, runs), runs)


def _figures(runs: Sequence[Run], memories: Memories) -> tuple[FigureData, ...]:
    """Return the loss, and every other figure with data."""
    drawn = (
        memory_figure(memories),
        phi_figure(runs),
        shear_figure(runs),
        shear_track_figure(runs),
        energy_figure(runs),
        trust_figure(runs),
    )
    return (loss_figure(runs), *(figure for figure in drawn if figure.curves))


def _missing(runs: Sequence[Run]) -> Iterable[Missing]:
    """Return the quantities that runs did not record, and how to record them."""
    yield from missing_curvature(runs)
    for what, how, lacking in (
        ("Direction autocorrelation and noise scale", _PAIRS, lambda run: not len(run.pairs)),
        ("Step quality", _EVALUATIONS, lambda run: len(run.probes) and not step_evaluations(run)),
        ("Angle between updates with and without the shear", _ANGLES, _without_angle),
        ("Layer-wise remainders", _LAYERS, lambda run: not _recorded(run, "tensors", "remainder")),
    ):
        names = [run.name for run in runs if lacking(run)]
        if names:
            yield Missing(f"{what} of {listed(names)}", how)


def _without_angle(run: Run) -> bool:
    """Return True if a run injected a shear and no angle was recorded."""
    return _recorded(run, "tensors", "injected_norm") and not _recorded(run, "steps", "injection_angle")


def _recorded(run: Run, table: str, column: str) -> bool:
    """Return True if a column has a value."""
    return bool(run.columns(table, column)[column].notna().any())
