"""Alignment of the gradient with the Hessian: share in the top eigenvectors, cos(g, Hg) and Rayleigh quotient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.statistics.estimate import Estimate, exact_estimate, rounded_estimate
from lossscope.probes.sums import dot, gram, norm

__all__ = ["GradientAlignment", "gradient_alignment"]


@dataclass(frozen=True, eq=False)
class GradientAlignment:
    """Alignment of the gradient with the eigenvectors of the Hessian; all nan if the gradient is zero."""

    chi: npt.NDArray[np.float64]  # (k,), share of |g|^2 in the first 1, ..., k eigenvectors
    null: npt.NDArray[np.float64]  # (k,), the same for a random direction: 1 / n, ..., k / n
    cosine: Estimate  # cos(g, Hg)
    rayleigh: float  # g'Hg / |g|^2, nats
    share: Estimate  # rayleigh over the largest eigenvalue; nan unless that is above 0
    converged: npt.NDArray[np.bool_]  # (k,), True if the first 1, ..., k eigenvectors have all met their bound


def gradient_alignment(objective: Objective, top: EigenPairs) -> GradientAlignment:
    r"""Measure the share of the gradient that lies in the directions of largest curvature.

    .. math:: \chi_k = \frac{\lVert V_k^\top g\rVert^2}{\lVert g\rVert^2}, \qquad
              \cos(g, Hg) = \frac{g^\top H g}{\lVert g\rVert\,\lVert Hg\rVert}, \qquad
              \frac{\hat g^\top H \hat g}{\lambda_{\max}}

    All are 1 if the gradient is the top eigenvector. A random direction has :math:`\chi_k = k / n` on average.

    Args:
        objective: The loss.
        top: The largest eigenpairs of its Hessian at the same parameters, descending: `measure_spectrum(...).top`.

    Returns:
        The alignment, as exact on the fixed data as the eigenpairs are; the interval of `share` follows from the bound
        of the largest eigenvalue and from rounding. Cost: one gradient and one product, and both in float64.

    Raises:
        ProbeError: The eigenvectors differ in length from the parameters, or the loss or product is not finite.

    Source:
        G. Gur-Ari, D. Roberts, E. Dyer (2018), Gradient descent happens in a tiny subspace, arXiv:1812.04754, for chi.

    Example:
        >>> import torch
        >>> from lossscope.probes.eigenvalues.measure import measure_spectrum
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(1, 1)])
        >>> found = gradient_alignment(objective, measure_spectrum(hessian(objective), top=1).top)
        >>> found.chi.tolist(), found.cosine.value, found.rayleigh, round(found.share.value, 6)
        ([1.0], 1.0, 2.0, 1.0)
    """
    if len(top.vectors) != objective.size:
        raise ProbeError(
            f"eigenvectors must have {objective.size} entries, one per trainable parameter, got {len(top.vectors)}: "
            "measure the spectrum of hessian(objective)"
        )
    k = top.vectors.shape[1]
    found = _Curved.of(objective)
    shares = gram(top.vectors.mT, found.gradient[None])[:, 0].cpu().numpy()
    shares = shares / (found.length if found.length > 0 else math.nan)
    rounding = number_rounding(objective, lambda other: _Curved.of(other).numbers, found.numbers, found.sizes)
    return GradientAlignment(
        np.cumsum(np.square(shares)),
        np.arange(1, k + 1) / objective.size,
        rounded_estimate(found.cosine, rounding[1]),
        found.rayleigh,
        _share(rounded_estimate(found.rayleigh, rounding[0]), top.estimate(0)),
        np.logical_and.accumulate(top.converged.numpy()),
    )


@dataclass(frozen=True)
class _Curved:
    """A gradient g with the curvature along it."""

    gradient: Tensor
    length: float  # |g|
    product_norm: float  # |Hg|
    form: float  # g'Hg

    @classmethod
    def of(cls, objective: Objective) -> _Curved:
        """Take one gradient and one product."""
        with objective.evaluating():
            g = objective.gradient()
            Hg = hessian(objective) @ g
        return cls(g, float(norm(g)), float(norm(Hg)), float(dot(g, Hg)))

    @property
    def rayleigh(self) -> float:
        """Rayleigh quotient; nan without a gradient."""
        return self.form / self.length / self.length if self.length > 0 else math.nan

    @property
    def cosine(self) -> float:
        """Cosine of g and Hg; nan if one of them is zero."""
        return self.form / self.length / self.product_norm if self.length > 0 and self.product_norm > 0 else math.nan

    @property
    def numbers(self) -> tuple[float, float]:
        """Rayleigh quotient and cosine."""
        return self.rayleigh, self.cosine

    @property
    def sizes(self) -> tuple[float, float]:
        """Sizes of the products that both are sums of."""
        return (self.product_norm / self.length if self.length > 0 else math.nan), 1.0


def _share(rayleigh: Estimate, largest: Estimate) -> Estimate:
    """Return the Rayleigh quotient over the largest eigenvalue, with the interval that their bounds imply."""
    if math.isnan(rayleigh.value) or not largest.value > 0:
        return exact_estimate(math.nan)
    ends = [
        along / end if end > 0 else math.copysign(math.inf, along)
        for along in (rayleigh.low, rayleigh.high)
        for end in (largest.low, largest.high)
    ]
    return Estimate(
        rayleigh.value / largest.value, math.nan, min(ends), max(ends), 0, "residual", converged=largest.converged
    )
