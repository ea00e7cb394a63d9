"""Entries of the catalogue for flatness by perturbation of the weights: worst case, average case, and a target rise.

All are taken on request only. This module imports no torch; the functions that measure import it when they are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from lossscope.landscape.measures.declarations import DIAGONAL, ROTATIONS
from lossscope.landscape.measures.measure import Bound, Measure
from lossscope.landscape.measures.measure_group import MeasureGroup, Names

if TYPE_CHECKING:
    from lossscope.landscape.measures.estimate_rows import Rows
    from lossscope.landscape.measures.panel import Panel
    from lossscope.probes.statistics.estimate import Estimate

__all__ = ["PERTURBATIONS"]


def _worst_case(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.perturbations import worst_case_rows

    return worst_case_rows(panel, names)


def _sam(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.perturbations import sam_rows

    return sam_rows(panel, names)


def _average_case(panel: Panel, names: Names) -> Mapping[str, Estimate]:
    from lossscope.probes.sharpness.average_case import average_sharpness

    return {"average_sharpness": average_sharpness(panel.objective, seed=panel.options.seed)}


def _low_pass(panel: Panel, names: Names) -> Mapping[str, Estimate]:
    from lossscope.probes.sharpness.average_case import low_pass_loss

    return {"low_pass_loss": low_pass_loss(panel.objective, seed=panel.options.seed)}


def _pac_bayes(panel: Panel, names: Names) -> Mapping[str, Estimate]:
    from lossscope.probes.sharpness.pac_bayes import pac_bayes_sigma

    return {"pac_bayes_sigma": pac_bayes_sigma(panel.objective, seed=panel.options.seed)}


PERTURBATIONS: Final[tuple[MeasureGroup, ...]] = (
    MeasureGroup(
        "worst_case",
        (
            Measure(
                "worst_case_l2",
                "loss",
                Bound.LOWER_OVER_BATCHES,
                DIAGONAL,
                "largest rise found of a minibatch's loss over relative perturbations of Euclidean norm 0.5: adaptive "
                "m-sharpness",
            ),
            Measure(
                "worst_case_linf",
                "loss",
                Bound.LOWER_OVER_BATCHES,
                DIAGONAL,
                "largest rise found of a minibatch's loss where every weight moves by 0.2 % of itself at most",
            ),
        ),
        run=_worst_case,
        cost="up to 200 losses and gradients on each minibatch for each measure",
        reports=("flatness",),
    ),
    MeasureGroup(
        "sam",
        (
            Measure(
                "sam_sharpness",
                "loss",
                Bound.BATCHES,
                ROTATIONS,
                "rise of a minibatch's loss after the ascent step of SAM, of length 0.05 along its gradient",
            ),
            Measure(
                "adaptive_sam_sharpness",
                "loss",
                Bound.BATCHES,
                DIAGONAL,
                "the same with each weight in units of itself, of length 0.5",
            ),
        ),
        run=_sam,
        cost="two losses and a gradient on each minibatch for each measure",
        reports=("flatness",),
    ),
    MeasureGroup(
        "average_case",
        (
            Measure(
                "average_sharpness",
                "loss",
                Bound.DRAWS,
                DIAGONAL,
                "mean rise of the loss under normal noise of 10 % on every weight",
            ),
        ),
        run=_average_case,
        cost="65 losses",
        reports=("flatness",),
    ),
    MeasureGroup(
        "low_pass",
        (
            Measure(
                "low_pass_loss",
                "loss",
                Bound.DRAWS,
                ROTATIONS,
                "mean loss under normal noise of standard deviation 0.01 on every weight: the low-pass filtered loss",
            ),
        ),
        run=_low_pass,
        cost="65 losses",
        reports=("flatness",),
    ),
    MeasureGroup(
        "pac_bayes",
        (
            Measure(
                "pac_bayes_sigma",
                "1",
                Bound.DRAWS,
                ROTATIONS,
                "noise of one size on every weight at which the mean loss has risen by 0.1",
            ),
        ),
        run=_pac_bayes,
        cost="about 200 losses",
        reports=("flatness",),
    ),
)
