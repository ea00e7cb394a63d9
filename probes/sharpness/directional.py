"""Directional sharpness: slope and curvature of the loss along an optimizer step."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.second_derivative import require_second_derivative, second_derivative
from lossscope.probes.statistics.estimate import Estimate, exact_estimate
from lossscope.probes.sums import dot, norm

__all__ = ["DirectionalSharpness", "directional_sharpness"]


@dataclass(frozen=True)
class DirectionalSharpness:
    """Second-order model of the loss along a displacement D, exact on the fixed data."""

    slope: Estimate  # g'D, nats
    curvature: Estimate  # D'HD, nats
    normalized: Estimate  # D'HD / |D|^2; nan if D is zero
    edge_ratio: Estimate  # -D'HD / (2 g'D), dimensionless; nan unless D is a descent direction


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
        The four numbers, with standard error 0: nothing is sampled. Cost: one gradient and one product.

    Raises:
        ProbeError: A shape does not match, or the displacement or the loss is not finite.

    Source:
        docs/measures/directional_sharpness.md, where it is derived; tested by the eigenvector and the linear map.
    """
    if not bool(torch.isfinite(displacement).all()):
        raise ProbeError("displacement must be finite, got nan or inf: the optimizer step itself failed")
    begun = time.perf_counter()
    with objective.at(at) if at is not None else nullcontext():
        slope, curvature = _along(objective, displacement)
    length = float(norm(displacement)) ** 2
    seconds = time.perf_counter() - begun
    return DirectionalSharpness(
        *(
            exact_estimate(value, products=1, seconds=seconds)
            for value in (
                slope,
                curvature,
                curvature / length if length > 0 else math.nan,
                -curvature / (2 * slope) if slope < 0 else math.nan,
            )
        )
    )


def _along(objective: Objective, displacement: Tensor) -> tuple[float, float]:
    """Return g'D and D'HD, from one graph per batch, summed in float64."""
    D = objective.vector.fitting(displacement)
    slope = curvature = 0.0
    with objective.evaluating():
        for batch in objective.gradients(graph=True):
            slope += batch.weight * float(dot(batch.gradient, D))
            curvature += batch.weight * float(dot(second_derivative(batch, D, last=True), D))
        require_second_derivative(objective)
    return slope, curvature
