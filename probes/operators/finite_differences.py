"""Second derivatives by differences of gradients, where autograd has none, and to catch it where it is wrong."""

from __future__ import annotations

import itertools
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.method import BatchProduct, Method

__all__ = ["DIFFERENCES", "Differences", "apart"]

_EXPONENT: Final = 0.4  # of the rounding unit in the step; 1/3 balances rounding and truncation but crosses more kinks
_SETTLED: Final = 1e-3  # two differences that are no further apart tell the derivative
_STRETCHES: Final = (1.0, 0.1, 0.01)


class Differences:
    r"""Central differences of the gradient of one batch, in float64 where the model lets itself be evaluated so.

    The step has the length :math:`\epsilon^{0.4} |\theta|`, whatever the length of the direction: with
    :math:`\epsilon` the rounding unit its relative error is :math:`\epsilon^{0.6}` from rounding and
    :math:`\epsilon^{0.8}` from the third derivative, in units where the gradient changes over :math:`|\theta|`. A kink
    of the loss that lies within the step is taken for curvature: rare in float64, common for ReLU in float32.

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
        except Exception:  # constants of another dtype in the model, or a function that has no float64
            self.objective = objective
        probe = torch.randn(objective.size, generator=torch.Generator().manual_seed(0))
        self.probe = probe.to(objective.device, self.objective.dtype)

    def along(self, direction: Tensor, stretch: float = 1.0) -> Tensor:
        """The derivative of the gradient along a direction `(n,)`, with the step times `stretch`."""
        theta, direction = self.objective.parameters(), direction.to(self.objective.dtype)
        norm = float(torch.linalg.vector_norm(direction))
        if norm == 0:
            return torch.zeros_like(direction)
        reach = stretch * self.objective.vector.unit**_EXPONENT * (float(torch.linalg.vector_norm(theta)) or 1.0)
        step = direction * (reach / norm)
        return self._slope(theta + step).sub(self._slope(theta - step)).mul(norm / (2 * reach))

    def settled(self) -> Tensor | None:
        """The derivative along `probe` by a step that a tenth of it confirms; None where kinks prevent it."""
        found = [self.along(self.probe, stretch) for stretch in _STRETCHES]
        return next((fine for coarse, fine in itertools.pairwise(found) if apart(coarse, fine) < _SETTLED), None)

    def error(self) -> float:
        """The relative error: how far the derivative along `probe` moves when the step is doubled, or rounding."""
        moved = apart(self.along(self.probe), self.along(self.probe, stretch=2.0))
        return max(float(self.objective.vector.unit ** (1 - _EXPONENT)), moved)

    def _slope(self, theta: Tensor) -> Tensor:
        """The gradient at other parameters."""
        objective, moved = self.objective, theta.requires_grad_()
        loss = objective.evaluated(objective.call, objective.vector.views(moved, apart=True), self._at)
        return objective.derivative(loss.reshape(()), moved)


def apart(expected: Tensor, found: Tensor) -> float:
    """The distance of two vectors in units of the first.

    Args:
        expected: `(n,)`.
        found: `(n,)`.

    Returns:
        The ratio; where the first is zero, 1 for another vector and 0 for the same.
    """
    size, distance = float(torch.linalg.vector_norm(expected)), float(torch.linalg.vector_norm(expected - found))
    return distance / size if size > 0 else float(distance > 0)


def _prepare(objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Products as differences, for models with no second derivative."""
    if objective.mode == "train":
        raise ProbeError("method='differences' cannot follow buffers that move in train mode: use mode='frozen'")
    objective.slope(objective.leaf(), at)
    differences = Differences(objective, at)

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        return torch.stack([differences.along(row) for row in rows]).to(rows.dtype)

    return BatchProduct(multiply)


def _error(objective: Objective, at: BatchEvaluation) -> float:
    """The relative error of products, which are rounded to the objective's own dtype."""
    return max(objective.vector.unit, Differences(objective, at).error())


DIFFERENCES: Final = Method("differences", _prepare, unit=_error, is_gradient=True)
