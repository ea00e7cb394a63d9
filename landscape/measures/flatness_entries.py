"""Entries of the catalogue for flatness that is meant to depend on the function alone, not on its parametrization.

This module imports no torch; the functions that measure import it when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from lossscope.landscape.measures.declarations import DIAGONAL, EVERY, LINEAR, RESCALING, krylov, long
from lossscope.landscape.measures.measure import Bound, Measure
from lossscope.landscape.measures.measure_group import Evaluation, MeasureGroup, Names, Schedule
from lossscope.landscape.measures.memory import METRIC_COPIES, krylov_vectors

if TYPE_CHECKING:
    from lossscope.landscape.measures.estimate_rows import Rows
    from lossscope.landscape.measures.panel import Panel

__all__ = ["FLATNESS"]


def _named_or_long(*names: str) -> Callable[[Evaluation], Collection[str]]:
    """Return a schedule of the long evaluations, and of all if the measures were named: a verdict reads each."""
    return lambda evaluation: names if evaluation.long or evaluation.named else ()


def _named_or_full(*names: str) -> Callable[[Evaluation], Collection[str]]:
    """Return a schedule of the evaluations of the fullest preset, and of all if the measures were named."""
    return lambda evaluation: names if evaluation.named or (evaluation.full and evaluation.long) else ()


def _top(names: Names) -> int:
    """Return 1 if a largest eigenvalue is among the measures."""
    return int(any(name.endswith("lambda_max") for name in names))


def _least(names: Names, size: int) -> int:
    """Return the smallest budget for a largest eigenvalue, a trace or both."""
    traces = any(name.endswith("trace") for name in names)
    return krylov(_top, space=bool(_top(names)), probes=traces)(names, size)


_VECTORS: Final = krylov_vectors(
    _top, whole=lambda names: any(name.endswith("trace") for name in names), beside=METRIC_COPIES
)


def _adaptive(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.flatness import adaptive_rows

    return adaptive_rows(panel, names)


def _balanced(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.flatness import balanced_rows

    return balanced_rows(panel, names)


def _basin(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.flatness import basin_rows

    return basin_rows(panel, names)


def _guard(panel: Panel, names: Names) -> Rows:
    from lossscope.landscape.measures.guard import guard_rows

    return guard_rows(panel, names)


def _guarded(measure: str, of: str, moves: str) -> Measure:
    """Return the declaration of the ratio of a measure after and before a rescaling."""
    meaning = f"{of} after a random rescaling of neurons that keeps the function, over that before: {moves}"
    return Measure(f"guard_{measure}", "1", Bound.RATIO, EVERY, meaning)


FLATNESS: Final[tuple[MeasureGroup, ...]] = (
    MeasureGroup(
        "adaptive",
        (
            Measure("adaptive_trace", "loss", Bound.INTERVAL, DIAGONAL, "sum of theta_i^2 H_ii: a flatness measure"),
            Measure(
                "adaptive_lambda_max",
                "loss",
                Bound.BELOW,
                DIAGONAL,
                "largest eigenvalue of diag(theta) H diag(theta): the worst direction, each weight in units of itself",
            ),
        ),
        run=_adaptive,
        least_products=_least,
        vectors=_VECTORS,
        recorded=Schedule(2, _named_or_long("adaptive_trace", "adaptive_lambda_max")),
        usual=True,
        reports=("flatness",),
        own_table=True,
    ),
    MeasureGroup(
        "balanced",
        (
            Measure(
                "balanced_lambda_max",
                "loss",
                Bound.BELOW,
                RESCALING,
                "largest eigenvalue of the Hessian at the balanced point of the same function",
            ),
            Measure(
                "balanced_trace",
                "loss",
                Bound.INTERVAL,
                RESCALING,
                "trace of the Hessian at the balanced point of the same function",
            ),
        ),
        run=_balanced,
        least_products=_least,
        vectors=_VECTORS,
        recorded=Schedule(2, _named_or_full("balanced_lambda_max", "balanced_trace")),
        usual=True,
        reports=("flatness",),
        own_table=True,
    ),
    MeasureGroup(
        "log_fisher_rao",
        (
            Measure(
                "log_fisher_rao", "1", Bound.EXACT, LINEAR, "ln of theta'F theta with the Fisher matrix of the model"
            ),
        ),
        run=lambda panel, names: panel.fisher_rao(),
        cost="a pass in forward mode",
        recorded=Schedule(3, long("log_fisher_rao")),
        usual=True,
        reports=("flatness",),
    ),
    MeasureGroup(
        "radial",
        (
            Measure(
                "theta_hessian_theta",
                "loss",
                Bound.EXACT,
                LINEAR,
                "theta'H theta: curvature of the loss when all parameters are scaled by one factor",
            ),
        ),
        run=lambda panel, names: panel.radial(),
        cost="two Hessian products",
        recorded=Schedule(5, long("theta_hessian_theta")),
        usual=True,
        reports=("flatness",),
    ),
    MeasureGroup(
        "basin",
        (
            Measure(
                "sigma_star",
                "1",
                Bound.DRAWS,
                DIAGONAL,
                "relative noise on every weight at which the mean loss has risen by 0.1: the basin radius",
            ),
            Measure(
                "noise_rise",
                "loss",
                Bound.DRAWS,
                DIAGONAL,
                "mean rise of the loss by the size of the relative noise; the points are in the table curves",
            ),
        ),
        run=_basin,
        cost="300 to 400 losses",
        least_products=lambda names, size: 1,  # it takes losses, no products: several hundred of them
        recorded=Schedule(9, _named_or_full("sigma_star", "noise_rise")),
        reports=("flatness",),
        own_table=True,
    ),
    MeasureGroup(
        "guard",
        (
            _guarded("adaptive_lambda_max", "adaptive lambda_max", "1 within its bounds"),
            _guarded("adaptive_trace", "adaptive trace", "1 within its bounds"),
            _guarded("balanced_lambda_max", "lambda_max at the balanced point", "1 within its bounds"),
            _guarded("balanced_trace", "trace at the balanced point", "1 within its bounds"),
            _guarded("lambda_max", "lambda_max as it is", "it moves, which is why it decides nothing"),
        ),
        run=_guard,
        least_products=krylov(lambda names: 1, probes=True),
        vectors=krylov_vectors(lambda names: 1, whole=lambda names: True, beside=METRIC_COPIES),
        reports=("flatness",),
        own_table=True,
    ),
)
