"""The measures a run can hold: name, unit, what its error bar is, and under which maps it stays the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["MEASURES", "Measure"]


@dataclass(frozen=True)
class Measure:
    """A value of the column `measure` of the probes table."""

    name: str
    unit: str
    bound: str  # what low and high are
    invariance: str  # which function-preserving maps of the parameters leave it alone
    meaning: str


_INTERVAL: Final = "95 % interval over random probes"
# A Ritz value is a weighted mean of the eigenvalues, so it lies between the ends; one further out may have been missed.
_BELOW: Final = (
    "value: never above the eigenvalue, up to rounding; residual: some eigenvalue lies within it, no upper bound"
)
_ABOVE: Final = (
    "value: never below the eigenvalue, up to rounding; residual: some eigenvalue lies within it, no lower bound"
)
_EXACT: Final = "exact on the fixed data"

MEASURES: Final = (
    Measure(
        "loss", "nats", _EXACT, "every function-preserving map", "mean training loss on the fixed data of curvature"
    ),
    Measure("lambda_max", "nats", _BELOW, "rotations only", "largest eigenvalue of the Hessian"),
    Measure("lambda_min", "nats", _ABOVE, "rotations only", "smallest eigenvalue of the Hessian"),
    Measure("trace", "nats", _INTERVAL, "rotations only", "sum of the eigenvalues of the Hessian"),
    Measure("frobenius", "nats", _INTERVAL, "rotations only", "root of the sum of squared eigenvalues"),
    Measure("directional_sharpness", "nats", _EXACT, "rotations only", "D'HD / |D|^2 along the step D that was taken"),
    Measure(
        "edge_ratio", "1", _EXACT, "every linear map", "R_dir = -D'HD / (2 g'D): above 1 the step goes too far downhill"
    ),
    Measure(
        "adaptive_trace", "nats", _INTERVAL, "every diagonal rescaling", "sum of theta_i^2 H_ii: a flatness measure"
    ),
    Measure(
        "log_fisher_rao", "1", _EXACT, "every linear map", "ln of theta'F theta with the Fisher matrix of the model"
    ),
)
