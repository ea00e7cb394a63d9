"""Hessian products by central differences of gradients, for models without a second derivative and to check others."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.method import BatchProduct, Method
from lossscope.probes.sums import norm

__all__ = ["DIFFERENCES", "Differences", "relative_distance"]

# exponent of the rounding unit in the step: 1/3 balances rounding and truncation, but crosses more kinks
_EXPONENT: Final = 0.4


class Differences:
    r"""Central differences of the gradient of one batch, in float64 if the model can be evaluated in it.

    The step has the length :math:`\epsilon^{0.4} |\theta|`, whatever the length of the direction: with
    :math:`\epsilon` the rounding unit its relative error is :math:`\epsilon^{0.6}` from rounding and
    :math:`\epsilon^{0.8}` from the third derivative, in units where the gradient changes over :math:`|\theta|`. A kink
    of the loss within the step counts as curvature: rare in float64, common for ReLU in float32.

    Args:
        objective: The loss; inside its `evaluating`.
        at: The batch.

    Attributes:
        objective: The loss as it is evaluated.
        probe: `(n,)`, a random direction, always the same.
    """

    def __init__(self, objective: Objective, at: BatchEvaluation) -> None:
        self._at = at
        self.objective = objective.in_double()
        try:
            self._slope(self.objective.parameters())
        except Exception:  # the model has constants of another dtype, or a function without a float64 version
            self.objective = objective
        probe = torch.randn(objective.size, generator=torch.Generator().manual_seed(0))
        self.probe = probe.to(objective.device, self.objective.dtype)

    def along(self, direction: Tensor, stretch: float = 1.0) -> Tensor:
        """Return the derivative of the gradient along a direction.

        Args:
            direction: `(n,)`.
            stretch: Factor on the length of the step.

        Returns:
            The derivative `(n,)`.
        """
        theta, direction = self.objective.parameters(), direction.to(self.objective.dtype)
        length = float(norm(direction))
        if length == 0:
            return torch.zeros_like(direction)
        reach = stretch * self.objective.vector.unit**_EXPONENT * (float(norm(theta)) or 1.0)
        step = direction * (reach / length)
        return self._slope(theta + step).sub(self._slope(theta - step)).mul(length / (2 * reach))

    def sides(self, direction: Tensor, stretch: float) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the gradient along a direction from above and from below, `(n,)` each."""
        theta, direction = self.objective.parameters(), direction.to(self.objective.dtype)
        here, central = self._slope(theta.clone()), self.along(direction, stretch)
        sizes = [float(vector.square().mean().sqrt()) for vector in (theta, direction)]
        scale = stretch * self.objective.vector.unit**_EXPONENT * (sizes[0] or 1.0) / sizes[1]
        above = self._slope(theta + direction * scale).sub(here).div(scale)
        return above, 2 * central - above

    def error(self) -> float:
        """Estimate the relative error: the change along `probe` when the step is doubled, at least rounding."""
        change = relative_distance(self.along(self.probe), self.along(self.probe, stretch=2.0))
        return max(float(self.objective.vector.unit ** (1 - _EXPONENT)), change)

    def _slope(self, theta: Tensor) -> Tensor:
        """Return the gradient at other parameters."""
        objective, moved = self.objective, theta.requires_grad_()

        def gradient(found: Tensor) -> Tensor:
            objective.inspect(found)
            return objective.derivative(found.reshape(()), moved)

        return objective.within(gradient, moved, self._at)


def relative_distance(expected: Tensor, found: Tensor) -> float:
    """Return the distance of two vectors relative to the length of the first.

    Args:
        expected: `(n,)`.
        found: `(n,)`.

    Returns:
        The ratio; where the first vector is zero, 1 if the second is another and 0 if it is the same.
    """
    size, distance = float(norm(expected)), float(norm(expected - found))
    return distance / size if size > 0 else float(distance > 0)


def _prepare(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Prepare products by differences of gradients."""
    if objective.mode == "train":
        raise ProbeError("method='differences' does not support mode='train', which updates buffers: use mode='frozen'")
    objective.slope(objective.leaf(), at)
    differences = Differences(objective, at)

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        return torch.stack([differences.along(row) for row in rows]).to(rows.dtype)

    return BatchProduct(multiply)


def _error(objective: Objective, at: BatchEvaluation) -> float:
    """Estimate the relative error of products, which are rounded to the objective's own dtype."""
    return max(torch.finfo(objective.dtype).eps, Differences(objective, at).error())


DIFFERENCES: Final = Method("differences", _prepare, unit=_error, is_gradient=True, fallback=True)
