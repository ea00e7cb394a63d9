"""Figures of the four numbers and of raw λ_max over the training loss at the same evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.series import Series, loss_at
from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.verdicts.verdict import RAW
from lossscope.reports.figure_content import Axis, Cloud
from lossscope.reports.flatness.four_numbers import FOUR, LABELS, NAMES
from lossscope.reports.shared.curves import cloud
from lossscope.reports.shared.known_errors import known_series
from lossscope.reports.shared.loss_unit import loss_unit

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["against_loss_figures", "figure_of"]

_KEYS: Final = {RAW.measure: "lambda_max_over_loss"}  # λ_max over steps has the other key
_CAPTION: Final = (
    "Unchanged by {invariance}. Training proceeds to the left; compare arms at equal loss only. Error bars are 95 % "
    "intervals or bounds; all seeds are pooled."
)


def figure_of(measure: str) -> str:
    """Return the key of the figure of a measure."""
    return _KEYS.get(measure, measure)


def against_loss_figures(runs: Sequence[Run]) -> tuple[Cloud, ...]:
    """Return the figures of the four numbers and of raw λ_max; those without a point are left out."""
    figures = (_figure(runs, measure) for measure in (*FOUR, RAW.measure))
    return tuple(figure for figure in figures if figure.points)


def _figure(runs: Sequence[Run], measure: str) -> Cloud:
    """Return the points of a measure over the loss."""
    unit, label = loss_unit(runs), LABELS[measure]
    name = NAMES[measure]
    return cloud(
        runs,
        key=figure_of(measure),
        title=f"{label[:1].upper()}{label[1:]}: {name} over train loss",
        caption=_CAPTION.format(invariance=known_measures()[measure].invariance),
        x=Axis("train loss", unit),
        y=Axis(name, unit),
        series=partial(_series, measure=measure),
    )


def _series(run: Run, measure: str) -> Series:
    """Return a measure over the loss at the same step, with its largest known error."""
    series = known_series(run, measure)
    return Series(run.name, loss_at(run, series.x), series.y, series.error)
