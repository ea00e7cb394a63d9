"""Measures of parts of the curvature, of the last layer, of weights in few bits, the least trace, and a sampler."""

from __future__ import annotations

from typing import Final

from lossscope.landscape.measures.estimate_rows import Rows, estimate_row, spectrum_rows
from lossscope.landscape.measures.flatness import at_balance
from lossscope.landscape.measures.mean_losses import NO_DATA, of_other_data
from lossscope.landscape.measures.panel import Panel
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.residual import residual
from lossscope.probes.sharpness.learning_coefficient import local_learning_coefficient
from lossscope.probes.sharpness.orbit_trace import orbit_trace
from lossscope.probes.sharpness.quantization import quantized_loss
from lossscope.probes.sharpness.relative_flatness import relative_flatness
from lossscope.probes.statistics.estimate import Estimate

__all__ = [
    "fisher_rows",
    "gauss_newton_rows",
    "learning_coefficient_rows",
    "orbit_rows",
    "quantized_rows",
    "relative_flatness_rows",
    "residual_rows",
]

_QUANTITIES: Final = {"lambda_max": "top", "lambda_min": "bottom", "trace": "trace"}  # by the end of a measure's name


def gauss_newton_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure the largest eigenvalue and the trace of the Gauss-Newton matrix."""
    return _rows(panel, gauss_newton(panel.objective), names)


def residual_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure both ends and the trace of the residual part of the Hessian."""
    return _rows(panel, residual(panel.objective), names)


def fisher_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure the trace of the true or the empirical Fisher matrix, by the name of the measure."""
    (name,) = names
    return _rows(panel, fisher(panel.objective, "empirical" if name.startswith("empirical") else "true"), names)


def relative_flatness_rows(panel: Panel) -> Rows:
    """Measure the relative flatness of the last layer."""
    options = panel.options
    found = relative_flatness(
        panel.objective, max_products=options.max_products, rel=options.trace_rel, seed=options.seed
    )
    return Rows([estimate_row("relative_flatness", found)])


def quantized_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure the loss on test data with weights in few bits, whose number is in the name of each measure."""
    test, rows = panel.target.test, Rows()
    if test is None:
        panel.absent |= dict.fromkeys(sorted(names), NO_DATA["test_loss"])
        return rows
    for name in sorted(names):
        bits = int("".join(filter(str.isdigit, name)))
        try:
            row = estimate_row(name, quantized_loss(test, bits))
        except ProbeError as error:
            panel.failed[name] = str(error)
            continue
        rows += Rows([{**row, **of_other_data(test)}])
    return rows


def orbit_rows(panel: Panel) -> Rows:
    """Measure the least trace over the rescalings of the network, from its balanced point."""
    options, at = panel.options, at_balance(panel.objective)
    found = orbit_trace(at, max_products=options.max_products, rel=options.trace_rel, seed=options.seed)
    return Rows([{**estimate_row("orbit_trace", found.trace), "gauge": "least trace", "parameters": at.size}])


def learning_coefficient_rows(panel: Panel) -> Rows:
    """Estimate the local learning coefficient; its budget is that of the sampler, not one of products."""
    found = local_learning_coefficient(panel.objective, seed=panel.options.seed)
    return Rows([estimate_row("learning_coefficient", found.coefficient)])


def _rows(panel: Panel, operator: SymmetricOperator, names: frozenset[str]) -> Rows:
    """Return the rows of a spectrum's quantities; the end of each name tells which one."""
    options, by_end = panel.options, {end: _named(names, end) for end in _QUANTITIES}
    found = measure_spectrum(
        operator,
        top=1,
        bottom=1,
        rel=options.rel,
        trace_rel=options.trace_rel,
        max_products=options.max_products,
        quantities=tuple(_QUANTITIES[end] for end, name in by_end.items() if name),
        seed=options.seed,
        memory=options.memory,
        spill=options.spill,
    )
    estimates: dict[str, Estimate] = {}
    for end, pairs in (("lambda_max", found.top), ("lambda_min", found.bottom)):
        if by_end[end] and pairs is not None and len(pairs.values):
            estimates[by_end[end]] = pairs.estimate()
    if by_end["trace"] and found.trace is not None:
        estimates[by_end["trace"]] = found.trace
    return spectrum_rows(estimates, found)


def _named(names: frozenset[str], end: str) -> str:
    """Return the name that ends with some letters; empty if there is none."""
    return next((name for name in names if name.endswith(end)), "")
