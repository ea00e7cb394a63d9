"""Hessian products by central differences of gradients, for models without a second derivative and to check others."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
_GROUP: Final = 0.15  # exponent of the rounding unit in the ratio of scales that may share a step


class Differences:
    r"""Central differences of the gradient of one batch, in float64 if the model can be evaluated in it.

    The step has the length :math:`\epsilon^{0.4} |\theta|`, whatever the length of the direction: with
    :math:`\epsilon` the rounding unit its relative error is :math:`\epsilon^{0.6}` from rounding and
    :math:`\epsilon^{0.8}` from the third derivative, in units where the gradient changes over :math:`|\theta|`. A kink
    of the loss within the step counts as curvature: rare in float64, common for ReLU in float32.

    Parameters of very different scale get steps of their own, and the derivatives are added: a parameter whose
    gradient is larger than the largest product of a parameter's size and gradient suggests, by more than
    :math:`\epsilon^{-0.15}`, is moved that much less. Such as first-layer weights for inputs of 1e6.

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
            gradient = self._slope(self.objective.parameters())
        except Exception:  # the model has constants of another dtype, or a function without a float64 version
            self.objective = objective
            gradient = self._slope(self.objective.parameters())
        self._groups = self._grouped(gradient)
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
        total = torch.zeros_like(direction)
        for step, scale in self._steps(theta, direction, stretch):
            total += self._slope(theta + step).sub(self._slope(theta - step)).div(2 * scale)
        return total

    def sides(self, direction: Tensor, stretch: float) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the gradient along a direction from above and from below, `(n,)` each."""
        theta, direction = self.objective.parameters(), direction.to(self.objective.dtype)
        here, central = self._slope(theta.clone()), self.along(direction, stretch)
        above = torch.zeros_like(direction)
        for step, scale in self._steps(theta, direction, stretch):
            above += self._slope(theta + step).sub(here).div(scale)
        return above, 2 * central - above

    def error(self) -> float:
        """Estimate the relative error: the change along `probe` when the step is doubled, at least rounding."""
        change = relative_distance(self.along(self.probe), self.along(self.probe, stretch=2.0))
        return max(float(self.objective.vector.unit ** (1 - _EXPONENT)), change)

    def _grouped(self, gradient: Tensor) -> dict[float, Tensor]:
        """Return the indices of the coordinates whose steps are shorter by the same factor, by that factor."""
        vector = self.objective.vector
        slopes = [_mean_square(part) for part in vector.views(gradient)]
        sizes = [_mean_square(part) for part in vector.views(self.objective.parameters())]
        typical = _mean_square(self.objective.parameters())
        most = max(size * slope for size, slope in zip(sizes, slopes, strict=True))
        groups: dict[float, set[str]] = {}
        for name, slope in zip(vector.names, slopes, strict=True):
            # mean squares, so twice the exponent of a ratio of lengths
            ratio = typical * slope / most if most > 0 else 0.0
            level = int(math.log(ratio) / math.log(vector.unit ** (-2 * _GROUP))) if 1 < ratio < math.inf else 0
            groups.setdefault(vector.unit ** (_GROUP * level), set()).add(name)
        return {factor: vector.indices(names).to(vector.device) for factor, names in groups.items()}

    def _steps(self, theta: Tensor, direction: Tensor, stretch: float) -> Iterator[tuple[Tensor, float]]:
        """Yield the steps along a direction whose sum is parallel to it but for their scales, and these."""
        reach = stretch * self.objective.vector.unit**_EXPONENT * (float(norm(theta)) or 1.0)
        for factor, indices in self._groups.items():
            if len(self._groups) == 1:
                part = direction
            else:
                part = torch.zeros_like(direction)
                part[indices] = direction[indices]
            length = float(norm(part))
            if length > 0:
                scale = factor * reach / length
                yield part * scale, scale

    def _slope(self, theta: Tensor) -> Tensor:
        """Return the gradient at other parameters."""
        objective, moved = self.objective, theta.requires_grad_()

        def gradient(found: Tensor) -> Tensor:
            objective.inspect(found)
            return objective.derivative(found.reshape(()), moved)

        return objective.within(gradient, moved, self._at)


def _mean_square(part: Tensor) -> float:
    """Return the mean square of a tensor, 0 if it is empty."""
    return float(norm(part)) ** 2 / max(part.numel(), 1)


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
