"""Notes shared by several reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.layer_spectra import orthogonalizes

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

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
    "flattening_notes",
]

HESSIAN_NOTE: Final = (
    "Raw Hessian values are comparable along one run. Between networks, compare only reparametrization-invariant "
    "measures, at matched train loss."
)
ENDS_NOTE: Final = (
    "Up to rounding, the λ_max shown is a lower bound on the largest eigenvalue, and the λ_min shown an upper bound on "
    "the smallest. No eigenvalue lies beyond value ± bound, with 95 % confidence over the random start. If λ_max was "
    "tracked between evaluations (preset economy), or measured by another library or by lossscope 0.1, the bound is "
    "the residual: an eigenvalue lies within it, but not necessarily the extreme one."
)
VERDICT_NOTE: Final = (
    "This report does not rank arms. `lossscope compare A B` does, at equal training loss and from 6 paired seeds on."
)
ADAPTIVE_NOTE: Final = (
    "The adaptive trace, sum of theta_i^2 H_ii, and the Fisher-Rao norm are invariant under rescalings of the weights "
    "that leave the function unchanged. Both depend on the loss level, and neither predicts generalization."
)
FLATTENING_NOTE: Final = (
    "Newton-Schulz flattens the spectrum and so raises its entropy by construction: a high entropy of O or of the "
    "update is not evidence of anything."
)
UPDATE_NOTE: Final = (
    "For lossscope's own optimizers the update excludes weight decay, for other optimizers it includes it: their "
    "`update` rows are not comparable."
)
BATCH_NOTE: Final = "Loss on the step's batch, at the parameters before the step."
LOSS_NOTE: Final = "Train loss: loss on the fixed training data of the curvature evaluations, at the same parameters."
SEEDS_NOTE: Final = (
    "Ranges are over training seeds, the statistical unit; measurement errors are stated separately. "
    '"(n missing)": n seeds have no value; the statistics are over the remaining seeds.'
)
INTERVAL_NOTE: Final = (
    "With two or more seeds: mean and 95 % t-interval over seeds; A and D are ratios of means over all seeds with a "
    "jackknife interval over seeds. With one seed: interval within that run; it says nothing about other seeds. "
    "[−∞, ∞] means that no reliable interval exists: one seed with fewer than five windows or several runs, a ceiling "
    "that may be 0, or a seed with an unbounded interval. These cases, and cases with missing seeds, are inconclusive."
)
DYNAMICS_NOTE: Final = (
    "Angles and cosines are invariant under rotations of the parameters but not under rescalings of layers: they are "
    "comparable along one run, or between optimizers on the same network."
)


def flattening_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the note on Newton-Schulz if a run recorded its output."""
    return (FLATTENING_NOTE,) if any(map(orthogonalizes, runs)) else ()
