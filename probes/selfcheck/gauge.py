"""Check of rescaling: measures of the function stay where a neuron-wise rescaling moves raw curvature."""

from __future__ import annotations

import math
from typing import Final

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.gauge.balance import balance
from lossscope.probes.gauge.rescale import rescaled
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.derived import scaled
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.selfcheck.check import Place, Reading, check
from lossscope.probes.selfcheck.problems import network, not_none

__all__ = ["GAUGE_CHECKS"]

_ROUNDINGS: Final = 2000.0  # largest relative change of an invariant number, in units of eps
_MOVED: Final = 1.5  # least factor by which the rescaling here changes raw curvature
_SEED: Final = 1


@check("rescaled neurons", "adaptive and balanced λ_max and trace of a ReLU network stay; raw λ_max moves")
def _rescaled(place: Place) -> Reading:
    before = network("ReLU", place)
    after = _like(before, _SEED)
    numbers, others = _numbers(before), _numbers(after)
    moved = abs(math.log(_top(hessian(after)) / _top(hessian(before))))
    changes = {name: abs(others[name] / numbers[name] - 1) for name in numbers}
    changes["raw λ_max, which should move"] = 0.0 if moved > math.log(_MOVED) else math.inf
    worst = max(changes, key=lambda name: (math.isnan(changes[name]), changes[name]))
    return changes[worst], _ROUNDINGS * place.eps, f"relative change; the largest: {worst}"


GAUGE_CHECKS: Final = (_rescaled,)


def _like(objective: Objective, seed: int | None = None) -> Objective:
    """Return the same loss of a rescaled copy of the network, or of its balanced point without a seed."""
    net = objective.model
    other = balance(net, batch=objective.data.batches[0]).model if seed is None else rescaled(net, seed)
    return Objective(other, objective.loss_fn, objective.data.batches)


def _numbers(objective: Objective) -> dict[str, float]:
    """Return the four numbers that a rescaling must not change."""
    relative = scaled(hessian(objective), objective.parameters())
    balanced = hessian(_like(objective))
    return {
        "adaptive λ_max": _top(relative),
        "adaptive trace": _trace(relative),
        "balanced λ_max": _top(balanced),
        "balanced trace": _trace(balanced),
    }


def _top(operator: SymmetricOperator) -> float:
    return float(not_none(measure_spectrum(operator, top=1, rel=1e-6, quantities=("top",)).top).values[0])


def _trace(operator: SymmetricOperator) -> float:
    return not_none(measure_spectrum(operator, quantities=("trace",), max_products=2 * operator.size).trace).value
