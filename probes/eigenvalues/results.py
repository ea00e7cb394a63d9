"""Results of a spectrum measurement: extreme eigenpairs with bounds, trace and norm with intervals, density."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lossscope.probes.eigenvalues.density import SpectralDensity
from lossscope.probes.eigenvalues.memory_plan import Mode
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["EigenPairs", "SpectrumEstimate"]


@dataclass(frozen=True)
class EigenPairs:
    r"""Approximate eigenpairs of a symmetric matrix, each with its bound.

    Some eigenvalue lies within `residuals[i]` of `values[i]`, for any matrix. The search stops by `bounds`. For the
    outermost pair the bound encloses the end of the spectrum at 95 % confidence: no eigenvalue lies further out. For
    the others it is the residual r, or :math:`r^2 /` gap where the gap to all other eigenvalues is known. Copies of a
    multiple eigenvalue beyond the width of the block may be missed. Without `proof` the bound of the outermost pair is
    its residual too, and an eigenvalue further out is unlikely, but not excluded.
    """

    values: Tensor  # (k,) float64 on the CPU
    vectors: Tensor  # (n, k) on the operator's device, orthonormal columns
    residuals: Tensor  # (k,) float64 on the CPU, |A y - theta y|
    bounds: Tensor  # (k,) float64 on the CPU
    converged: Tensor  # (k,) bool on the CPU, True if the bound is as small as requested
    cause: str = ""  # reason that a bound is not, where it is the rounding of products
    proof: bool = True  # False if nothing excludes that an eigenvalue lies further out

    def estimate(self, index: int = 0) -> Estimate:
        """Return one eigenvalue as an estimate with its bounds.

        Args:
            index: Index of the pair; 0 is the outermost.

        Returns:
            The estimate; `residual` is the residual, `low` and `high` are the value minus and plus its bound.
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
            cause="" if self.converged[index] else self.cause,
        )


@dataclass(frozen=True)
class SpectrumEstimate:
    """Measured quantities of one operator; None for those that were not requested."""

    top: EigenPairs | None  # descending
    bottom: EigenPairs | None  # ascending
    trace: Estimate | None
    frobenius: Estimate | None
    density: SpectralDensity | None
    products: int  # total products
    seconds: float  # total wall time
    gradients: float  # total wall time in gradients of the objective; nan without an objective
    engine: str  # lossscope or pyhessian
    method: str  # method of the products
    unmet: tuple[str, ...]  # quantities whose bound was not met
    cause: str = ""  # reason that a bound was not met, and a remedy, where it is the rounding of products
    basis: Mode = "whole basis"  # what was kept of the Krylov space; with another engine nothing is known
    memory: int = 0  # bytes for which that was chosen

    @property
    def proof(self) -> bool:
        """False if nothing excludes that an eigenvalue lies further out than those that were found."""
        return all(pairs.proof for pairs in (self.top, self.bottom) if pairs is not None)

    @property
    def negative_mass(self) -> Estimate | None:
        """Share of negative eigenvalues in the sum of absolute eigenvalues."""
        return None if self.density is None else self.density.negative_mass

    @property
    def effective_rank(self) -> Estimate | None:
        """Exponential of the entropy of the positive eigenvalues."""
        return None if self.density is None else self.density.effective_rank

    @property
    def participation_ratio(self) -> Estimate | None:
        """Squared sum of the positive eigenvalues over the sum of their squares."""
        return None if self.density is None else self.density.participation_ratio
