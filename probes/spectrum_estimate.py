"""What is known of a spectrum: both ends with residual bounds, trace and Frobenius norm with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lossscope.probes.estimate import Estimate

__all__ = ["EigenPairs", "SpectrumEstimate"]


@dataclass(frozen=True)
class EigenPairs:
    """Approximate eigenpairs of a symmetric matrix, each with its certificate.

    Some eigenvalue lies within `residuals[i]` of `values[i]`, whatever the matrix; that it is the extreme one is
    likely, not certain.
    """

    values: Tensor  # (k,) float64 on the CPU
    vectors: Tensor  # (n, k) float64 on the operator's device, orthonormal columns
    residuals: Tensor  # (k,) float64 on the CPU, |A y - theta y|
    converged: Tensor  # (k,) bool on the CPU, whether the residual met the bound that was asked for

    def estimate(self, index: int = 0) -> Estimate:
        """One eigenvalue as an estimate that is bounded by its residual."""
        value, residual = float(self.values[index]), float(self.residuals[index])
        return Estimate(
            value,
            math.nan,
            value - residual,
            value + residual,
            0,
            "residual",
            residual=residual,
            converged=bool(self.converged[index]),
        )


@dataclass(frozen=True)
class SpectrumEstimate:
    """The measured quantities of one operator; None for those that were not asked for."""

    top: EigenPairs | None  # descending
    bottom: EigenPairs | None  # ascending
    trace: Estimate | None
    frobenius: Estimate | None
    products: int  # products spent on all of it
    seconds: float  # wall time spent on all of it
    engine: str  # lossscope or pyhessian
