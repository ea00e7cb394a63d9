"""Entries of the catalogue for limits: the learning rate, or the radius, up to which a model of the loss holds.

All are taken on request only. This module imports no torch; the functions that measure import it when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lossscope.landscape.measures.declarations import ROTATIONS, krylov
from lossscope.landscape.measures.measure import Bound, Measure
from lossscope.landscape.measures.measure_group import MeasureGroup, Names
from lossscope.landscape.measures.memory import krylov_vectors

if TYPE_CHECKING:
    from lossscope.landscape.measures.estimate_rows import Rows
    from lossscope.landscape.measures.panel import Panel

__all__ = ["LIMITS"]

_PAIRS: Final = 5  # eigenvalues that narrow the bounds of the zeroth-order rate


def _zeroth_order(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.limits import zeroth_order_rows

    return zeroth_order_rows(panel, pairs=_PAIRS)


def _smoothness(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.limits import smoothness_rows

    return smoothness_rows(panel, names)


LIMITS: Final[tuple[MeasureGroup, ...]] = (
    MeasureGroup(
        "zeroth_order",
        (
            Measure(
                "zeroth_order_rate",
                "1",
                Bound.TAIL,
                ROTATIONS,
                "largest learning rate at which zeroth-order descent is stable in the mean square: 2 over the trace of "
                "the Gauss-Newton matrix, less where few of its eigenvalues dominate",
            ),
        ),
        run=_zeroth_order,
        least_products=krylov(lambda names: _PAIRS, probes=True),
        vectors=krylov_vectors(lambda names: _PAIRS, whole=lambda names: True),
    ),
    MeasureGroup(
        "smoothness",
        (
            Measure(
                "gradient_smoothness",
                "1",
                Bound.UPPER,
                ROTATIONS,
                "radius of trust of the quadratic model: the distance at which its error in the gradient is as long as "
                "the gradient, the smallest of four directions",
            ),
            Measure(
                "gradient_smoothness_gauss_newton",
                "1",
                Bound.UPPER,
                ROTATIONS,
                "the same with the Gauss-Newton matrix in place of the Hessian",
            ),
        ),
        run=_smoothness,
        cost="about 60 gradients and five products for each measure",
    ),
)
