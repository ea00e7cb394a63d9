"""Passes of each kind of need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from lossscope.optimizer.ascent.two_pass import Pass
from lossscope.optimizer.estimates.drawn_labels import sampled_gradient
from lossscope.optimizer.estimates.estimated_step import EstimatedStep
from lossscope.optimizer.estimates.hessian_product import hessian_product
from lossscope.optimizer.estimates.layer_factors import layer_factors
from lossscope.optimizer.estimates.two_losses import two_losses
from lossscope.optimizer.update.rule import Need

__all__ = ["PASSES"]

PASSES: Final[dict[Need, Callable[[EstimatedStep], Iterator[Pass]]]] = {
    Need.SAMPLED_GRADIENT: sampled_gradient,
    Need.LAYER_FACTORS: layer_factors,
    Need.HESSIAN_PRODUCT: hessian_product,
    Need.TWO_LOSSES: two_losses,
}
