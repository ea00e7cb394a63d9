"""Guard of invariance: flatness after a random rescaling of neurons that keeps the function, over that before."""

from __future__ import annotations

import math
import time

import torch

from lossscope.landscape.measures.estimate_rows import Rows, estimate_row
from lossscope.landscape.measures.flatness import at_balance, ends, same_function, top_and_trace
from lossscope.landscape.measures.options import SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.probes.eigenvalues.results import SpectrumEstimate
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.derived import scaled
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["guard_rows", "ratio"]

_PREFIX = "guard_"
_FAMILIES = ("adaptive", "balanced", "")  # the last one is the Hessian as it is


def guard_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure flatness before and after a random rescaling of all neurons, with the same random vectors.

    Args:
        panel: The loss at the present parameters; its seed is that of the rescaling too.
        names: Names of ratios.

    Returns:
        A row for each ratio; those that cannot be taken at the balanced point are in `panel.failed`.

    Raises:
        ProbeError: No rescaling is known that keeps the function of this network.
    """
    from lossscope.probes.gauge.rescale import rescaled

    begun, objective = time.perf_counter(), panel.objective
    other = same_function(objective, rescaled(objective.model, panel.options.seed), "after a rescaling")
    if torch.equal(other.parameters(), objective.parameters()):
        raise ProbeError("no rescaling of neurons is known that keeps the function of this network: nothing to compare")
    estimates: dict[str, Estimate] = {}
    products, method = 0, panel.hessian.method
    for family in _FAMILIES:
        wanted = frozenset(name for name in names if _family(name) == family)
        if not wanted:
            continue
        try:
            before, after = (_measured(one, family, wanted, panel.options) for one in (objective, other))
        except ProbeError as error:
            panel.failed |= dict.fromkeys(sorted(wanted), str(error))
            continue
        products += before.products + after.products
        method = before.method
        estimates |= {name: ratio(_of(after, name), _of(before, name)) for name in names if name in wanted}
    if not estimates:
        raise ProbeError(next(iter(panel.failed.values())))
    cost = {"products": products, "seconds": time.perf_counter() - begun, "method": method}
    gauges = {name: "balanced" if _family(name) == "balanced" else "raw" for name in estimates}
    return Rows([{**estimate_row(name, one), "gauge": gauges[name], **cost} for name, one in sorted(estimates.items())])


def ratio(above: Estimate, below: Estimate) -> Estimate:
    """Return the ratio of two estimates, between the ratios of the opposite ends of their bounds.

    Args:
        above: Numerator.
        below: Denominator.

    Returns:
        The ratio; its ends are infinite where the denominator may be 0, and it is nan where it is.
    """
    value = above.value / below.value if below.value else math.nan
    if below.low <= 0 <= below.high:
        low, high = -math.inf, math.inf
    else:
        quotients = [a / b for a in (above.low, above.high) for b in (below.low, below.high)]
        low, high = min(quotients), max(quotients)
    met = above.converged and below.converged
    return Estimate(value, math.nan, low, high, 0, "residual", converged=met, cause=above.cause or below.cause)


def _family(name: str) -> str:
    """Return the family of a ratio: the measures that one computation takes."""
    bare = name.removeprefix(_PREFIX)
    return next(family for family in _FAMILIES if bare.startswith(family))


def _measured(objective: Objective, family: str, names: frozenset[str], options: SolverOptions) -> SpectrumEstimate:
    """Measure what the ratios of one family need."""
    operator: SymmetricOperator
    if family == "adaptive":
        operator = scaled(hessian(objective), objective.parameters())
    else:
        operator = hessian(at_balance(objective) if family == "balanced" else objective)
    return top_and_trace(operator, options, ends(names))


def _of(found: SpectrumEstimate, name: str) -> Estimate:
    """Return the estimate that a ratio is of."""
    if name.endswith("trace"):
        assert found.trace is not None  # it was asked for
        return found.trace
    assert found.top is not None
    return found.top.estimate()
