"""Figures used by several reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.layer_spectra import orthogonalizes
from lossscope.landscape.analysis.series import (
    Series,
    against_loss,
    spectrum_series,
    step_series,
    synced_series,
    tensor_series,
)
from lossscope.reports.figure_content import Axis, Cloud, Curves, Threshold
from lossscope.reports.shared.curves import cloud, curves
from lossscope.reports.shared.known_errors import known_series
from lossscope.reports.shared.loss_unit import loss_unit
from lossscope.reports.shared.notes import BATCH_NOTE, FLATTENING_NOTE, HESSIAN_NOTE, LOSS_NOTE
from lossscope.reports.shared.step_quality import trust_series

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = [
    "adaptive_trace_figure",
    "edge_figure",
    "energy_figure",
    "entropy_figure",
    "loss_figure",
    "phi_figure",
    "shear_figure",
    "shear_track_figure",
    "trace_figure",
    "trust_figure",
]

_BEFORE_AFTER: Final = ("before (A)", "after (O)")
_PHI: Final = ("phi", "threshold")
_TRACKS: Final = ("matrices", "vectors")


def loss_figure(runs: Sequence[Run]) -> Curves:
    """Return the training loss over steps."""
    return curves(
        runs,
        key="loss",
        title="Training loss",
        caption=BATCH_NOTE,
        y=Axis("loss", loss_unit(runs)),
        series=lambda run: step_series(run, "loss"),
    )


def edge_figure(runs: Sequence[Run]) -> Curves:
    """Return the directional edge ratio of the steps taken, with a threshold at 1."""
    caption = "Above 1, the quadratic model predicts that the loss rises along the step."
    line = Threshold(1.0, "η dᵀHd / (2 gᵀd) = 1")
    axis = Axis("directional edge ratio", scale="log")
    return _probe_figure(
        runs, "directional_edge_ratio", "Directional edge ratio of the step taken", caption, axis, line
    )


def trace_figure(runs: Sequence[Run]) -> Curves:
    """Return the Hessian trace over steps, with 95 % intervals."""
    caption = f"Measurement errors are half-widths of 95 % intervals. {HESSIAN_NOTE}"
    return _probe_figure(runs, "trace", "Trace of the Hessian", caption, Axis("trace", loss_unit(runs)))


def entropy_figure(runs: Sequence[Run]) -> Curves:
    """Return the energy entropy of A and of O over steps, mean over matrices; of an arm without O, of A alone."""
    plain = [arm for arm, members in by_arm(runs).items() if not any(map(orthogonalizes, members))]
    figure = curves(
        runs,
        key="entropy",
        title="Spectral entropy before and after Newton-Schulz",
        caption=f"Entropy of s²/Σs² over ln r of the whitened momentum A and of its orthogonalization O, mean over "
        f"matrices; 1 is a flat spectrum. {FLATTENING_NOTE}",
        y=Axis("entropy / ln r"),
        series=lambda run: spectrum_series(run, "whitened", "entropy_energy"),
        dashed=lambda run: spectrum_series(run, "orthogonal", "entropy_energy"),
        styles=_BEFORE_AFTER,
    )
    lacking = {f"{arm}, {_BEFORE_AFTER[1]}" for arm in plain}  # there is nothing to measure
    return replace(figure, absent=tuple(one for one in figure.absent if one not in lacking))


def shear_figure(runs: Sequence[Run]) -> Curves:
    """Return the angle between base and adversarial gradient over the steps with both."""
    return curves(
        runs,
        key="shear_angle",
        title="Shear angle",
        caption="Angle between base and adversarial gradient, at steps with a second pass.",
        y=Axis("angle", "°"),
        series=_angle_in_degrees,
    )


def shear_track_figure(runs: Sequence[Run]) -> Curves:
    """Return the shear angle of single tensors over the steps with a second gradient, mean over each track."""
    return curves(
        runs,
        key="shear_angle_by_track",
        title="Shear angle by track",
        caption="Angle between base and adversarial gradient of each tensor, mean over the tensors of a track, at "
        "steps with a second pass.",
        y=Axis("angle", "°"),
        series=lambda run: _track_angle_in_degrees(run, "matrix"),
        dashed=lambda run: _track_angle_in_degrees(run, "vector"),
        styles=_TRACKS,
    )


def phi_figure(runs: Sequence[Run]) -> Curves:
    """Return phi over steps, and the trigger threshold as a dashed line."""
    return curves(
        runs,
        key="phi",
        title="phi and the trigger threshold",
        caption="Cosine between gradient and stored shear. Below the threshold the trigger takes a second gradient.",
        y=Axis("phi"),
        series=lambda run: step_series(run, "phi"),
        dashed=lambda run: step_series(run, "threshold"),
        styles=_PHI,
    )


def trust_figure(runs: Sequence[Run]) -> Curves:
    """Return the trust ratio over steps, with a threshold at 1."""
    return curves(
        runs,
        key="trust_ratio",
        title="Trust ratio of the step taken",
        caption="Actual over predicted change of the loss on the fixed data; below 0 the predicted sign was wrong. "
        "Whiskers are the rounding error of the losses; values dominated by it are missing.",
        y=Axis("actual / predicted change"),
        series=trust_series,
        thresholds=(Threshold(1.0, "as predicted"),),
    )


def energy_figure(runs: Sequence[Run]) -> Curves:
    """Return the Fisher energy per entry over steps, mean over the matrices and, dashed, over the vectors."""
    return curves(
        runs,
        key="energy_rms",
        title="Fisher energy",
        caption="E/√numel with E = ‖A‖_F, mean over the tensors of a track: a signal-to-noise ratio of the gradients, "
        "from 0 to 1.",
        y=Axis("E / √numel"),
        series=lambda run: tensor_series(run, "energy_rms"),
        dashed=lambda run: tensor_series(run, "energy_rms", track="vector"),
        styles=_TRACKS,
    )


def adaptive_trace_figure(runs: Sequence[Run]) -> Cloud:
    """Return the adaptive trace over the train loss at the same evaluation."""
    return cloud(
        runs,
        key="adaptive_trace",
        title="Adaptive trace over train loss",
        caption=(
            "Training proceeds to the left. Values are comparable at equal loss only. "
            f"Error bars are 95 % intervals; all seeds are pooled. {LOSS_NOTE}"
        ),
        x=Axis("train loss", loss_unit(runs)),
        y=Axis("Σ θ² H", loss_unit(runs)),
        series=lambda run: against_loss(run, "adaptive_trace"),
    )


def _probe_figure(
    runs: Sequence[Run], measure: str, title: str, caption: str, y: Axis, *thresholds: Threshold
) -> Curves:
    """Return the figure of a measure of the whole model over steps; its key is the measure."""
    return curves(
        runs,
        key=measure,
        title=title,
        caption=caption,
        y=y,
        series=lambda run: known_series(run, measure),
        thresholds=thresholds,
    )


def _angle_in_degrees(run: Run) -> Series:
    """Return the shear angle, in degrees, of the steps with a second pass."""
    series = synced_series(run, "adversarial_angle")
    return replace(series, y=np.degrees(series.y))


def _track_angle_in_degrees(run: Run, track: str) -> Series:
    """Return the mean shear angle, in degrees, over the tensors of a track, at the steps with a value."""
    series = tensor_series(run, "adversarial_angle", track=track)
    there = np.isfinite(series.y)
    return Series(run.name, series.x[there], np.degrees(series.y[there]), series.error[there])
