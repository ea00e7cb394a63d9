"""Rows of limits: the learning rate, or the radius, up to which a model of the loss holds."""

from __future__ import annotations

from typing import Final

from lossscope.landscape.measures.estimate_rows import Rows, estimate_row, spectrum_rows
from lossscope.landscape.measures.panel import Panel
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.sharpness.gradient_smoothness import Model, gradient_smoothness
from lossscope.probes.sharpness.zeroth_order import zeroth_order_interval

__all__ = ["smoothness_rows", "zeroth_order_rows"]

_MODELS: Final[dict[str, Model]] = {
    "gradient_smoothness": "hessian",
    "gradient_smoothness_gauss_newton": "gauss_newton",
}


def smoothness_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Search the gradient-normalized smoothness of the quadratic models; one that is missing leaves the other.

    Args:
        panel: The loss at its present parameters.
        names: The measures to take.
    """
    rows = Rows()
    for name in (name for name in _MODELS if name in names):
        try:
            found = gradient_smoothness(panel.objective, model=_MODELS[name], seed=panel.options.seed)
        except ProbeError as error:
            panel.failed[name] = str(error)
            continue
        rows.probes.append(estimate_row(name, found.radius))
    return rows


def zeroth_order_rows(panel: Panel, *, pairs: int) -> Rows:
    """Measure the largest stable learning rate of zeroth-order descent.

    Args:
        panel: The loss at its present parameters.
        pairs: Number of eigenvalues that narrow its bounds.

    Raises:
        ProbeError: The loss has no Gauss-Newton matrix, or it is zero.
    """
    operator, options = gauss_newton(panel.objective), panel.options
    found = measure_spectrum(
        operator,
        top=min(pairs, operator.size),
        rel=options.rel,
        trace_rel=options.trace_rel,
        max_products=options.max_products,
        quantities=("top", "trace"),
        seed=options.seed,
        memory=options.memory,
        spill=options.spill,
    )
    if found.top is None or found.trace is None or not len(found.top.values):
        raise ProbeError("no eigenvalue of the Gauss-Newton matrix was found: raise --max-products")
    top = [found.top.estimate(i) for i in range(len(found.top.values))]
    return spectrum_rows({"zeroth_order_rate": zeroth_order_interval(found.trace, top)}, found)
