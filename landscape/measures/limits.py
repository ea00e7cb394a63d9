"""Rows of limits: the learning rate, or the radius, up to which a model of the loss holds."""

from __future__ import annotations

from lossscope.landscape.measures.estimate_rows import Rows, spectrum_rows
from lossscope.landscape.measures.panel import Panel
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.sharpness.zeroth_order import zeroth_order_interval

__all__ = ["zeroth_order_rows"]


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
