"""Directional sharpness: slope and curvature of the loss along an optimizer step."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.derivative_checks import require_second_derivative
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.operators.second_derivative import named, second_derivative
from lossscope.probes.statistics.estimate import Estimate, rounded_estimate
from lossscope.probes.sums import dot, norm

__all__ = ["DirectionalSharpness", "directional_sharpness"]


@dataclass(frozen=True)
class DirectionalSharpness:
    """Second-order model of the loss along a displacement D, exact on the fixed data."""

    slope: Estimate  # g'D, nats
    curvature: Estimate  # D'HD, nats
    normalized: Estimate  # D'HD / |D|^2, the normalized directional sharpness; nan if D is zero
    edge_ratio: Estimate  # -D'HD / (2 g'D), dimensionless; nan unless D is a descent direction

    def sharpness(self, lr: float) -> Estimate:
        r"""Return the directional sharpness :math:`\lambda_{dir} = d^\top H d / (g^\top d)` of the update d = -D / lr.

        The step is at the edge of stability where it is 2 / lr. For gradient descent it is a mean of the eigenvalues
        weighted by the squared gradient, and so at most lambda_max.

        Args:
            lr: Learning rate of the step, finite and above 0.

        Returns:
            Twice the edge ratio over the learning rate; nan unless D is a descent direction.

        Raises:
            ProbeError: The learning rate is out of range.

        Source:
            V. Roulet et al. (2024), Stepping on the edge: curvature aware learning rate tuners, arXiv:2407.06183; D.
            Kalra et al. (2026), arXiv:2601.16979.
        """
        if not (math.isfinite(lr) and lr > 0):
            raise ProbeError(f"lr must be finite and above 0, got {lr:g}")
        R, factor = self.edge_ratio, 2 / lr
        return replace(R, value=factor * R.value, stderr=factor * R.stderr, low=factor * R.low, high=factor * R.high)


def directional_sharpness(
    objective: Objective, displacement: Tensor, *, at: Tensor | None = None
) -> DirectionalSharpness:
    r"""Measure slope and curvature of the loss along a step.

    To second order the step changes the loss by :math:`g^\top D + \tfrac12 D^\top H D`, which is a decrease if
    and only if the edge ratio :math:`R = -D^\top H D / (2 g^\top D)` is below 1. With :math:`D = -\eta d` that is
    :math:`\eta d^\top H d / (2 g^\top d)`; for gradient descent along an eigenvector :math:`\eta\lambda/2`, so 1 is
    the edge of stability for every optimizer. Slope, curvature and ratio are invariant under any linear map of the
    parameters; the normalized curvature is not.

    Args:
        objective: The loss.
        displacement: `(n,)`, D, parameters after the step minus before.
        at: `(n,)`, parameters before the step. Default: the model's current parameters.

    Returns:
        The four numbers, with standard error 0: nothing is sampled; their intervals contain their rounding, and one
        has not converged if that exceeds 1 % of it. Cost: one gradient and one product, and both once more in another
        precision, with which they are compared.

    Raises:
        ProbeError: A shape does not match, or the displacement or the loss is not finite.

    Source:
        docs/measures/directional_sharpness.md, where it is derived; tested by the eigenvector and the linear map.
    """
    if not bool(torch.isfinite(displacement).all()):
        raise ProbeError("displacement must be finite, got nan or inf: the optimizer step itself failed")
    begun = time.perf_counter()
    with objective.at(at) if at is not None else nullcontext():
        found = _along(objective, displacement)
        errors = _rounding(objective, displacement, found)
    length = float(norm(displacement)) ** 2
    rounded = partial(rounded_estimate, products=2, seconds=time.perf_counter() - begun)
    slope, curvature = found.slope, found.curvature
    slope_error, curvature_error = errors
    ratio = -curvature / (2 * slope) if slope < 0 else math.nan
    # to first order, as of any ratio
    ratio_error = abs(ratio) * (slope_error / abs(slope) + _share(curvature_error, curvature)) if slope < 0 else 0.0
    return DirectionalSharpness(
        rounded(slope, slope_error),
        rounded(curvature, curvature_error),
        rounded(curvature / length, curvature_error / length) if length > 0 else rounded(math.nan, 0.0),
        rounded(ratio, ratio_error),
    )


@dataclass(frozen=True)
class _Along:
    """Slope and curvature along a displacement, and the sizes of the products that they are sums of."""

    slope: float
    curvature: float
    sizes: tuple[float, float]  # |g| |D| and |HD| |D|, averaged over the batches


def _along(objective: Objective, displacement: Tensor) -> _Along:
    """Return g'D and D'HD, from one graph per batch, summed in float64."""
    D = objective.vector.fitting(displacement)
    slope = curvature = first = second = 0.0
    with objective.evaluating():
        for batch in objective.gradients(graph=True):
            gradient = batch.gradient
            slope += batch.weight * float(dot(gradient, D))
            with named():
                product = second_derivative(batch, D, last=True)
            curvature += batch.weight * float(dot(product, D))
            first += batch.weight * float(norm(gradient))
            second += batch.weight * float(norm(product))
        require_second_derivative(objective)
    length = float(norm(D))
    return _Along(slope, curvature, (first * length, second * length))


def _rounding(objective: Objective, displacement: Tensor, found: _Along) -> tuple[float, float]:
    """Bound the rounding of slope and curvature."""

    def both(other: Objective) -> tuple[float, float]:
        along = _along(other, displacement)
        return along.slope, along.curvature

    slope, curvature = number_rounding(objective, both, (found.slope, found.curvature), found.sizes)
    return slope, curvature


def _share(error: float, value: float) -> float:
    """Return a relative error; 0 for a number that is 0, whose ratio is 0 too."""
    return error / abs(value) if value else 0.0
