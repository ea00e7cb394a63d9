"""Alignment of the gradient with the Hessian: share in the top eigenvectors, cos(g, Hg) and Rayleigh quotient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.statistics.estimate import Estimate, exact_estimate
from lossscope.probes.sums import dot, gram, norm

__all__ = ["GradientAlignment", "gradient_alignment"]


@dataclass(frozen=True, eq=False)
class GradientAlignment:
    """Alignment of the gradient with the eigenvectors of the Hessian; all nan if the gradient is zero."""

    chi: npt.NDArray[np.float64]  # (k,), share of |g|^2 in the first 1, ..., k eigenvectors
    null: npt.NDArray[np.float64]  # (k,), the same for a random direction: 1 / n, ..., k / n
    cosine: float  # cos(g, Hg)
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
        of the largest eigenvalue. Cost: one gradient and one product.

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
        >>> found.chi.tolist(), found.cosine, found.rayleigh, round(found.share.value, 6)
        ([1.0], 1.0, 2.0, 1.0)
    """
    if len(top.vectors) != objective.size:
        raise ProbeError(
            f"eigenvectors must have {objective.size} entries, one per trainable parameter, got {len(top.vectors)}: "
            "measure the spectrum of hessian(objective)"
        )
    k = top.vectors.shape[1]
    with objective.evaluating():
        g = objective.gradient()
        Hg = hessian(objective) @ g
    length, product_norm = float(norm(g)), float(norm(Hg))
    exists = length > 0
    shares = gram(top.vectors.mT, g[None])[:, 0].cpu().numpy() / (length if exists else math.nan)
    along = float(dot(g, Hg)) / length if exists else math.nan
    rayleigh = along / length if exists else math.nan
    return GradientAlignment(
        np.cumsum(np.square(shares)),
        np.arange(1, k + 1) / objective.size,
        along / product_norm if product_norm > 0 else math.nan,
        rayleigh,
        _share(rayleigh, top.estimate(0)),
        np.logical_and.accumulate(top.converged.numpy()),
    )


def _share(rayleigh: float, largest: Estimate) -> Estimate:
    """Return the Rayleigh quotient over the largest eigenvalue, with the interval that its bounds imply."""
    if math.isnan(rayleigh) or not largest.value > 0:
        return exact_estimate(math.nan)
    ends = [rayleigh / end if end > 0 else math.copysign(math.inf, rayleigh) for end in (largest.low, largest.high)]
    return Estimate(
        rayleigh / largest.value, math.nan, min(ends), max(ends), 0, "residual", converged=largest.converged
    )
