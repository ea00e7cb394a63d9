"""Measures, the values of the column `measure` of the table `probes`: unit, error bound, invariance."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["BY_PYHESSIAN", "EIGENVALUES", "FROM_DENSITY", "VERDICT", "WITHOUT_TOLERANCE", "Bound", "Limit", "Measure"]

EIGENVALUES: Final = ("lambda_max", "lambda_2", "lambda_3", "lambda_4", "lambda_5")
FROM_DENSITY: Final = ("density", "negative_mass", "effective_rank", "participation_ratio")
VERDICT: Final = frozenset({"adaptive_lambda_max", "adaptive_trace", "balanced_lambda_max", "balanced_trace"})
BY_PYHESSIAN: Final = (*EIGENVALUES, "trace")  # measures that PyHessian has too


class Limit(StrEnum):
    """Limit of the precision of a measure."""

    EXACT = "exact"  # nothing
    EFFORT = "effort"  # the requested error bound and the budget
    DEPTH = "depth"  # the dimension of the Krylov space
    BATCHES = "batches"  # the number of minibatches
    DRAWS = "draws"  # the number of draws of noise
    DATA = "data"  # the data themselves


WITHOUT_TOLERANCE: Final[frozenset[Limit]] = frozenset(
    {Limit.EXACT, Limit.BATCHES, Limit.DRAWS}
)  # no error bound is requested for these


class Bound(StrEnum):
    """Meaning of the columns `low` and `high` of a measure."""

    EXACT = "exact on the fixed data"
    ROUNDED = "exact on the fixed data, within the rounding of losses and gradients"
    INTERVAL = "95 % interval over random probes"
    # A Ritz value is a weighted mean of the eigenvalues, so it lies between the extreme ones; the random start may
    # have missed one further out.
    BELOW = (
        "value: never above the eigenvalue, up to rounding; bound: no eigenvalue lies above value + bound, with 95 % "
        "confidence over the random start; residual: some eigenvalue lies within it"
    )
    ABOVE = (
        "value: never below the eigenvalue, up to rounding; bound: no eigenvalue lies below value - bound, with 95 % "
        "confidence over the random start; residual: some eigenvalue lies within it"
    )
    INNER = "value: never above the eigenvalue, up to rounding; bound: an eigenvalue lies within it"
    EIGENVECTORS = "none: as good as the eigenvectors, which are less certain than their eigenvalues"
    EIGENVALUE = "between the bounds of lambda_max"
    QUADRATURE = "95 % interval over random vectors, widened by the change since half of the steps"
    DATA = "95 % interval over the drawing of the data"
    BATCHES = "95 % interval over minibatches"
    DRAWS = "95 % interval over draws of noise"
    RATIO = "between the ratios of the opposite ends of the bounds of both numbers"
    TAIL = (
        "between the numbers with all eigenvalues but the largest five alike and with those spread over many, at the "
        "far ends of the 95 % intervals of the trace and of those five"
    )
    BRACKET = "the loss is lower than before the step at one end and higher at the other, beyond its rounding"
    LOWER_OVER_BATCHES = (
        "value: reached on each minibatch by a point that was found; low: lower end of its 95 % interval over "
        "minibatches; high: unknown, the maximum may be elsewhere"
    )
    UPPER = "high: no larger number holds, by a point that was found; low: unknown, another direction may be worse"
    LOWER = "low: reached by a point that was found; high: unknown, the maximum may be elsewhere"

    @property
    def limit(self) -> Limit:
        """Limit of the precision of a measure with this bound."""
        return _LIMITS.get(self, Limit.EFFORT)


_LIMITS: Final = {
    Bound.EXACT: Limit.EXACT,
    Bound.ROUNDED: Limit.EXACT,
    Bound.EIGENVECTORS: Limit.EXACT,
    Bound.QUADRATURE: Limit.DEPTH,
    Bound.BATCHES: Limit.BATCHES,
    Bound.DATA: Limit.DATA,
    Bound.DRAWS: Limit.DRAWS,
}


@dataclass(frozen=True)
class Measure:
    """Declaration of a measure."""

    name: str
    unit: str
    bound: Bound
    invariance: str  # the function-preserving maps of the parameters under which the measure is invariant
    meaning: str
