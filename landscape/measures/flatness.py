"""Flatness that depends on the function alone: curvature relative to each weight, at the balanced point, and basin."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from lossscope.landscape.measures.estimate_rows import Rows, estimate_row, spectrum_rows
from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.measures.options import SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.results import SpectrumEstimate
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.loss_terms import class_logits
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.derived import scaled
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.basin import NoiseCurve, basin_radius, noise_curve

__all__ = [
    "RISE",
    "UnknownBalanceError",
    "adaptive_rows",
    "at_balance",
    "balanced_rows",
    "basin_rows",
    "ends",
    "same_function",
    "top_and_trace",
]

RISE: Final = 0.1  # of the loss, nats, that ends the basin
_DRAWS: Final = 32
_SAME: Final = 1e-5  # largest difference of outputs, relative to the largest of them, of two networks of one function
_LISTED: Final = 3  # parts of a network that a reason names


class UnknownBalanceError(ProbeError):
    """No balanced point is known for a network."""


def top_and_trace(
    operator: SymmetricOperator, options: SolverOptions, wanted: frozenset[str], near: Tensor | None = None
) -> SpectrumEstimate:
    """Measure the largest eigenvalue, the trace or both in one Krylov space.

    Args:
        operator: The operator.
        options: Tolerances, budget and seed.
        wanted: `top`, `trace` or both.
        near: Eigenvector of a similar operator.

    Returns:
        The estimates.
    """
    return measure_spectrum(
        operator,
        top=1,
        rel=options.rel,
        trace_rel=options.trace_rel,
        max_products=options.max_products,
        quantities=tuple(wanted),
        seed=options.seed,
        warm_start=near,
        memory=options.memory,
        spill=options.spill,
    )


def ends(names: frozenset[str]) -> frozenset[str]:
    """Return the quantities of a spectrum that measures need, by the ends of their names."""
    quantities = {"lambda_max": "top", "trace": "trace"}
    return frozenset(one for end, one in quantities.items() if any(name.endswith(end) for name in names))


def _rows(prefix: str, found: SpectrumEstimate, gauge: str) -> Rows:
    """Return the rows of a largest eigenvalue and a trace."""
    estimates = {} if found.trace is None else {f"{prefix}_trace": found.trace}
    if found.top is not None and len(found.top.values):
        estimates[f"{prefix}_lambda_max"] = found.top.estimate()
    return Rows([{**row, "gauge": gauge} for row in spectrum_rows(estimates, found).probes])


def adaptive_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure trace and largest eigenvalue of diag(theta) H diag(theta)."""
    operator = scaled(panel.hessian, panel.objective.parameters())
    found = top_and_trace(operator, panel.options, ends(names), panel.near.get("adaptive"))
    panel.remember("adaptive", found)
    return _rows("adaptive", found, "raw")


def balanced_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure trace and largest eigenvalue of the Hessian at the balanced point."""
    try:
        objective = at_balance(panel.objective)
    except UnknownBalanceError as error:
        panel.failed |= dict.fromkeys(sorted(names), str(error))
        return Rows()
    found = top_and_trace(hessian(objective), panel.options, ends(names), panel.near.get("balanced"))
    panel.remember("balanced", found)
    size: Row = {"parameters": objective.size}
    return Rows([{**row, **size} for row in _rows("balanced", found, "balanced").probes])


def at_balance(objective: Objective) -> Objective:
    """Return the loss at the balanced point of the same function.

    Args:
        objective: The loss.

    Returns:
        The loss of another network, whose outputs are the same.

    Raises:
        UnknownBalanceError: No balanced point is known for this network.
        ProbeError: Its outputs differ.
    """
    from lossscope.probes.gauge.balance import balance

    found = balance(objective.model)
    if found.unknown:
        shown = "; ".join(found.unknown[:_LISTED])
        more = f"; and {len(found.unknown) - _LISTED} more" if len(found.unknown) > _LISTED else ""
        raise UnknownBalanceError(f"no balanced point is known for this network: {shown}{more}")
    return same_function(objective, found.model, "at the balanced point")


def same_function(objective: Objective, model: nn.Module, where: str) -> Objective:
    """Return the loss of another network after checking that it is the same function.

    Args:
        objective: The loss.
        model: The other network.
        where: Clause that tells the other network from the first.

    Returns:
        The loss of the other network.

    Raises:
        ProbeError: Its outputs on the first batch differ by more than 1e-5 of the largest, or its loss does.
    """
    other = objective.with_model(model)
    outputs = class_logits(objective.loss_fn)
    if outputs is None:
        before, after = (torch.tensor([one.value()], dtype=torch.float64) for one in (objective, other))
    else:
        before, after = _outputs(objective, outputs), _outputs(other, outputs)
    apart = float((after - before).abs().max()) / (float(before.abs().max()) or 1.0)
    if not apart <= _SAME:
        what = "loss differs" if outputs is None else "outputs differ"
        raise ProbeError(
            f"the {what} {where} by {apart:.1e} of the largest, which is more than {_SAME:g}: measure in float64, "
            "with objective.in_double()"
        )
    return other


def _outputs(objective: Objective, function: Callable[..., Tensor]) -> Tensor:
    """Return the outputs on the first batch, in float64."""
    with objective.evaluating():
        objective.require_repeatable()
        at = next(iter(objective.passes()))
        found: Tensor = objective.evaluated(objective.substitution(function), objective.copies(), at)
        return found.detach().double()


def basin_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure the noise curve and the basin radius, with the same draws."""
    objective, seed = panel.objective, panel.options.seed
    begun, rows = time.perf_counter(), Rows()
    curve = noise_curve(objective, draws=_DRAWS, seed=seed) if "noise_rise" in names else None
    if curve is not None:
        rows.curves.append(_curve_row(curve))
    if "sigma_star" in names:
        try:
            radius = basin_radius(objective, rise=RISE, draws=_DRAWS, seed=seed, known=curve)
        except ProbeError as error:
            if curve is None:
                raise
            panel.failed["sigma_star"] = str(error)
        else:
            rows.probes.append(estimate_row("sigma_star", radius))
    cost = {"products": 0, "seconds": time.perf_counter() - begun}
    return Rows([{**row, **cost} for row in rows.probes], curves=[{**row, **cost} for row in rows.curves])


def _curve_row(curve: NoiseCurve) -> Row:
    """Return the row of a noise curve; points that are missing are nan in all but their noise level."""
    return {
        "measure": "noise_rise",
        "x": curve.sigmas.tolist(),
        "y": curve.mean.tolist(),
        "low": curve.low.tolist(),
        "high": curve.high.tolist(),
        "samples": curve.rises.shape[1],
    }
