"""Entries of the catalogue for parts of the curvature and for flatness that is not invariant; taken on request only.

This module imports no torch; the functions that measure import it when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lossscope.landscape.measures.declarations import RESCALING, ROTATIONS, krylov
from lossscope.landscape.measures.measure import Bound, Measure
from lossscope.landscape.measures.measure_group import MeasureGroup, Names
from lossscope.landscape.measures.memory import METRIC_COPIES, krylov_vectors

if TYPE_CHECKING:
    from lossscope.landscape.measures.estimate_rows import Rows
    from lossscope.landscape.measures.panel import Panel

__all__ = ["STRUCTURAL"]


def _ends(names: Names) -> int:
    """Return the number of ends of a spectrum among the measures."""
    return sum(name.endswith(("lambda_max", "lambda_min")) for name in names)


def _traces(names: Names) -> bool:
    """Return True if a trace is among the measures."""
    return any(name.endswith("trace") for name in names)


def _least(names: Names, size: int) -> int:
    """Return the smallest budget for ends of a spectrum, a trace or both."""
    return krylov(_ends, space=bool(_ends(names)), probes=_traces(names))(names, size)


_VECTORS: Final = krylov_vectors(_ends, whole=_traces)


def _gauss_newton(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.structural import gauss_newton_rows

    return gauss_newton_rows(panel, names)


def _residual(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.structural import residual_rows

    return residual_rows(panel, names)


def _fisher(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.structural import fisher_rows

    return fisher_rows(panel, names)


def _relative_flatness(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.structural import relative_flatness_rows

    return relative_flatness_rows(panel)


def _quantized(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.structural import quantized_rows

    return quantized_rows(panel, names)


def _orbit(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.structural import orbit_rows

    return orbit_rows(panel)


def _least_of_orbit(names: Names, size: int) -> int:
    """Return the smallest budget for the least trace."""
    from lossscope.probes.sharpness.orbit_trace import LEAST_PRODUCTS

    return LEAST_PRODUCTS


def _learning_coefficient(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.structural import learning_coefficient_rows

    return learning_coefficient_rows(panel)


STRUCTURAL: Final[tuple[MeasureGroup, ...]] = (
    MeasureGroup(
        "gauss_newton",
        (
            Measure(
                "gauss_newton_lambda_max",
                "loss",
                Bound.BELOW,
                ROTATIONS,
                "largest eigenvalue of the Gauss-Newton matrix G, the Hessian of the loss of the linearized model",
            ),
            Measure("gauss_newton_trace", "loss", Bound.INTERVAL, ROTATIONS, "trace of the Gauss-Newton matrix"),
        ),
        run=_gauss_newton,
        least_products=_least,
        vectors=_VECTORS,
        reports=("flatness",),
    ),
    MeasureGroup(
        "residual",
        (
            Measure(
                "residual_lambda_max",
                "loss",
                Bound.BELOW,
                ROTATIONS,
                "largest eigenvalue of H - G, what the second derivatives of the model's outputs add to the Hessian",
            ),
            Measure("residual_lambda_min", "loss", Bound.ABOVE, ROTATIONS, "smallest eigenvalue of H - G"),
            Measure("residual_trace", "loss", Bound.INTERVAL, ROTATIONS, "trace of H - G"),
        ),
        run=_residual,
        least_products=_least,
        vectors=_VECTORS,
        reports=("flatness",),
    ),
    *(
        MeasureGroup(
            name,
            (Measure(name, "loss", Bound.INTERVAL, ROTATIONS, meaning),),
            run=_fisher,
            least_products=_least,
            vectors=_VECTORS,
            reports=("flatness",),
        )
        for name, meaning in (
            ("fisher_trace", "trace of the Fisher matrix: labels drawn from the model's own predictions"),
            ("empirical_fisher_trace", "mean squared norm of the gradients of single terms, with the labels given"),
        )
    ),
    MeasureGroup(
        "relative_flatness",
        (
            Measure(
                "relative_flatness",
                "loss",
                Bound.INTERVAL,
                "a factor between the last layer and the rest, but not by factors of single neurons",
                "sum over rows s, t of the last layer's weight of <w_s, w_t> tr H_st",
            ),
        ),
        run=_relative_flatness,
        least_products=krylov(lambda names: 0, space=False, probes=True),
        reports=("flatness",),
    ),
    MeasureGroup(
        "orbit_trace",
        (
            Measure(
                "orbit_trace",
                "loss",
                Bound.INTERVAL,
                RESCALING,
                "least trace of the Hessian over the rescalings of neurons, channels and layers that keep the function",
            ),
        ),
        run=_orbit,
        least_products=_least_of_orbit,
        vectors=krylov_vectors(lambda names: 4, whole=lambda names: True, beside=METRIC_COPIES),
        reports=("flatness",),
    ),
    MeasureGroup(
        "quantization",
        tuple(
            Measure(
                f"test_loss_{bits}_bits",
                "loss",
                Bound.ROUNDED,
                "a factor for each weight tensor, but not by factors of single neurons",
                f"mean loss on test data with weight tensors rounded to {2**bits - 1} values each",
            )
            for bits in range(2, 9)
        ),
        run=_quantized,
        reports=("flatness",),
        cost="two losses on test data for each measure",
    ),
    MeasureGroup(
        "learning_coefficient",
        (
            Measure(
                "learning_coefficient",
                "1",
                Bound.DRAWS,
                ROTATIONS,
                "local learning coefficient at localization 100: n / ln n times the mean rise of the loss under a "
                "posterior around the parameters; depends on the sampler's settings",
            ),
        ),
        run=_learning_coefficient,
        reports=("flatness",),
        cost="4000 losses and gradients",
    ),
)
