"""Entries of the catalogue for measures along the step that was taken, which are recorded during training only.

This module imports no torch; the functions that measure import it when they are called.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from lossscope.landscape.measures.declarations import LINEAR, ROTATIONS
from lossscope.landscape.measures.measure import Bound, Measure
from lossscope.landscape.measures.measure_group import Evaluation, MeasureGroup, Schedule

__all__ = ["ALONG_STEP"]

_CRITICAL: Final = (
    Measure(
        "critical_step",
        "1",
        Bound.BRACKET,
        LINEAR,
        "multiple of the step taken at which the loss is back at its value before it: below 1 the step raised the loss",
    ),
    Measure(
        "critical_learning_rate",
        "1",
        Bound.BRACKET,
        LINEAR,
        "learning rate at which the update would leave the loss as it was; a larger one would raise it",
    ),
    Measure(
        "critical_sharpness",
        "1",
        Bound.BRACKET,
        LINEAR,
        "2 over the critical learning rate: a number of a finite step, no estimate of an eigenvalue",
    ),
    Measure(
        "critical_ratio",
        "1",
        Bound.BRACKET,
        LINEAR,
        "critical_sharpness over lambda_dir: 1 where the loss is quadratic along the step",
    ),
)
_DIRECTION: Final = (
    Measure(
        "directional_sharpness",
        "loss",
        Bound.EXACT,
        ROTATIONS,
        "normalized directional sharpness D'HD / |D|^2 along the step D that was taken",
    ),
    Measure(
        "directional_edge_ratio",
        "1",
        Bound.EXACT,
        LINEAR,
        "-D'HD / (2 g'D): above 1 the step goes too far downhill",
    ),
    Measure(
        "lambda_dir",
        "1",
        Bound.EXACT,
        LINEAR,
        "directional sharpness d'Hd / (g'd) of the update d = -D / lr: 2 / lr where the directional edge ratio is 1",
    ),
    Measure("loss_change", "loss", Bound.ROUNDED, LINEAR, "L(theta + D) - L(theta) along the step D that was taken"),
    Measure("first_remainder", "loss", Bound.ROUNDED, LINEAR, "R1 = loss change - g'D: error of the linear model"),
    Measure("second_remainder", "loss", Bound.ROUNDED, LINEAR, "R2 = R1 - D'HD / 2: error of the quadratic model"),
    Measure("relative_first", "1", Bound.ROUNDED, LINEAR, "|R1| / |g'D|"),
    Measure("relative_second", "1", Bound.ROUNDED, LINEAR, "|R2| / (|g'D| + |D'HD| / 2)"),
    Measure(
        "trust_ratio",
        "1",
        Bound.ROUNDED,
        LINEAR,
        "actual change of the loss over that of the quadratic model: 1 where the model is exact",
    ),
    Measure(
        "secant_curvature",
        "loss",
        Bound.ROUNDED,
        ROTATIONS,
        "D'y / |D|^2, y the change of gradient on the step",
    ),
    Measure(
        "secant_norm",
        "loss",
        Bound.ROUNDED,
        ROTATIONS,
        "|y| / |D|: never below the magnitude of secant_curvature",
    ),
    Measure("secant_alignment", "1", Bound.ROUNDED, ROTATIONS, "cosine of the step and the change of gradient"),
)
_GHOST: Final = (
    Measure(
        "ghost_ratio",
        "1",
        Bound.ROUNDED,
        LINEAR,
        "length of the step over the softmax ghost radius: below 1 the Taylor series of the loss along it converges "
        "for every term",
    ),
    Measure("ghost_ratio_99", "1", Bound.ROUNDED, LINEAR, "99 % quantile of the same over the terms of the loss"),
    Measure("ghost_ratio_90", "1", Bound.ROUNDED, LINEAR, "90 % quantile of the same over the terms of the loss"),
    Measure(
        "ghost_runner_up",
        "1",
        Bound.ROUNDED,
        LINEAR,
        "largest ratio of the step to a term's own radius, that of its correct class and the largest other one",
    ),
    Measure(
        "ghost_nonlinearity",
        "1",
        Bound.ROUNDED,
        LINEAR,
        "change of the logits that is not linear in the step, over their linear change: small where the radii hold",
    ),
)


def _ghost_due(evaluation: Evaluation) -> Collection[str]:
    """Return the ghost radius where it was named."""
    return tuple(measure.name for measure in _GHOST) if evaluation.stepped and evaluation.named else ()


def _direction_due(evaluation: Evaluation) -> Collection[str]:
    """Return the measures along the step: at short evaluations the two that need no further loss or gradient."""
    if not evaluation.stepped:
        return ()
    if evaluation.long:
        return tuple(measure.name for measure in _DIRECTION)
    return ("directional_edge_ratio", "directional_sharpness", "lambda_dir")


def _critical_due(evaluation: Evaluation) -> Collection[str]:
    """Return the critical learning rate at every evaluation with a step: it takes a few losses."""
    return tuple(measure.name for measure in _CRITICAL) if evaluation.stepped else ()


ALONG_STEP: Final[tuple[MeasureGroup, ...]] = (
    MeasureGroup(
        "direction",
        _DIRECTION,
        run=lambda panel, names: panel.along_step(names),
        recorded=Schedule(8, _direction_due),
        reports=("dynamics", "sharpness"),
        own_table=True,
        needs_step=True,
    ),
    MeasureGroup(
        "critical",
        _CRITICAL,
        run=lambda panel, names: panel.critical(names),
        recorded=Schedule(8, _critical_due),  # right after the direction, whose edge ratio it is compared with
        own_table=True,
        needs_step=True,
    ),
    MeasureGroup(
        "ghost",
        _GHOST,
        run=lambda panel, names: panel.ghost(names),
        recorded=Schedule(8, _ghost_due),
        cost="six passes through the network",
        needs_step=True,
    ),
)
