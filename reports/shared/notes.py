"""Sentences that more than one report says, each in one place."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ADAPTIVE_NOTE",
    "BATCH_NOTE",
    "DYNAMICS_NOTE",
    "ENDS_NOTE",
    "FLATTENING_NOTE",
    "HESSIAN_NOTE",
    "INTERVAL_NOTE",
    "LOSS_NOTE",
    "SEEDS_NOTE",
    "UPDATE_NOTE",
    "VERDICT_NOTE",
]

HESSIAN_NOTE: Final = (
    "Raw Hessian numbers compare along one run; between two networks only reparametrization-invariant measures at "
    "matched train loss decide."
)
ENDS_NOTE: Final = (
    "Up to rounding, the λ_max shown is a lower bound on the true largest eigenvalue and the λ_min shown an upper "
    "bound on the true smallest. Beyond value and bound there is no eigenvalue, with 95 % confidence over the random "
    "start; where λ_max was followed from evaluation to evaluation (preset economy), or measured by another library or "
    "by lossscope 0.1, the bound is the residual, within which some eigenvalue lies, not surely the extreme one."
)
VERDICT_NOTE: Final = (
    "No verdict between arms is given here: one needs matched train loss and at least 6 paired seeds, and is not part "
    "of this report."
)
ADAPTIVE_NOTE: Final = (
    "The adaptive trace, sum of theta_i^2 H_ii, and the Fisher-Rao norm do not move under a rescaling of weights that "
    "leaves the function as it is. They still depend on the loss level, and neither says how well a network "
    "generalizes."
)
FLATTENING_NOTE: Final = (
    "Newton-Schulz flattens the spectrum, so it raises the entropy by construction: a high entropy of O or of the "
    "update is evidence of nothing."
)
UPDATE_NOTE: Final = (
    "The update is the displacement without weight decay for lossscope's own optimizers, and with it for others: their "
    "rows of `update` do not compare."
)
BATCH_NOTE: Final = "Loss of the step's batch, at the parameters before the step."
LOSS_NOTE: Final = (
    "Train loss beside curvature is the loss on curvature's own fixed training data, at the same parameters."
)
SEEDS_NOTE: Final = (
    "Ranges run over training seeds, the unit of statistics; the error of a measurement is stated apart. "
    "Seeds counted as missing have no such number; the rest is over the others."
)
INTERVAL_NOTE: Final = (
    "Intervals are Student's over the training seeds where there are two or more, with means over them; of one seed "
    "they are over that run's own windows or steps, and say nothing of other seeds. [−∞, ∞] is one that could not be "
    "relied on: fewer than five windows, several runs of one seed alone, or a seed whose own interval has no end. "
    "There, and where seeds are missing, nothing is judged."
)
DYNAMICS_NOTE: Final = (
    "Angles and cosines do not move under rotations of the parameters, but do under a rescaling of layers: they "
    "compare along one run, or between optimizers on one network."
)
