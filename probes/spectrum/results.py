"""What is known of a spectrum: both ends with bounds, trace and norm with intervals, and the density."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lossscope.probes.spectrum.density import SpectralDensity
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["EigenPairs", "SpectrumEstimate"]


@dataclass(frozen=True)
class EigenPairs:
    r"""Approximate eigenpairs of a symmetric matrix, each with its bound.

    Some eigenvalue lies within `residuals[i]` of `values[i]`, whatever the matrix. `bounds` is what the
    search was stopped by. For the outermost pair it holds the end of the spectrum with 95 % confidence: no
    eigenvalue lies further out. For the others it is the residual r, or :math:`r^2 /` gap where the gap to all other
    eigenvalues is known. Copies of a multiple eigenvalue beyond the width of the block may be missed.
    """

    values: Tensor  # (k,) float64 on the CPU
    vectors: Tensor  # (n, k) on the operator's device, orthonormal columns
    residuals: Tensor  # (k,) float64 on the CPU, |A y - theta y|
    bounds: Tensor  # (k,) float64 on the CPU
    converged: Tensor  # (k,) bool on the CPU, whether the bound is as small as was asked

    def estimate(self, index: int = 0) -> Estimate:
        """One eigenvalue as an estimate between its bounds.

        Args:
            index: Which pair; 0 is the outermost.

        Returns:
            The estimate; `residual` is the residual, `low` and `high` are the value less and plus its bound.
        """
        value, bound = float(self.values[index]), float(self.bounds[index])
        return Estimate(
            value,
            math.nan,
            value - bound,
            value + bound,
            0,
            "residual",
            residual=float(self.residuals[index]),
            converged=bool(self.converged[index]),
        )


@dataclass(frozen=True)
class SpectrumEstimate:
    """The measured quantities of one operator; None for those that were not asked for."""

    top: EigenPairs | None  # descending
    bottom: EigenPairs | None  # ascending
    trace: Estimate | None
    frobenius: Estimate | None
    density: SpectralDensity | None
    products: int  # products spent on all of it
    seconds: float  # wall time spent on all of it
    gradients: float  # the same in gradients of the objective; nan where there is none
    engine: str  # lossscope or pyhessian
    method: str  # what took the products
    unmet: tuple[str, ...]  # quantities whose bound was not met

    @property
    def negative_mass(self) -> Estimate | None:
        """The share of negative eigenvalues in the sum of absolute eigenvalues."""
        return None if self.density is None else self.density.negative_mass

    @property
    def effective_rank(self) -> Estimate | None:
        """The exponential of the entropy of the positive eigenvalues."""
        return None if self.density is None else self.density.effective_rank

    @property
    def participation_ratio(self) -> Estimate | None:
        """The squared sum of the positive eigenvalues over the sum of their squares."""
        return None if self.density is None else self.density.participation_ratio
