r"""Hessian products by central differences of gradients, for models without a second derivative and to check others.

**Error.** With the gradient g at five points of a line and the step h, the central differences
:math:`D_h = (g_{+h} - g_{-h}) / 2h` and :math:`D_{2h}` are off by :math:`h^2 T / 6` and four times that, with T the
third derivative twice along the line. So :math:`|D_{2h} - D_h| / 3` is the truncation of :math:`D_h`. The fourth
difference :math:`g_{2h} - 4 g_h + 6 g_0 - 4 g_{-h} + g_{-2h}` has no part of the first three orders: it is the rounding
of the gradients times :math:`\sqrt{70}`, and that of :math:`D_h` is :math:`\delta / \sqrt2 h`. Both are measured, and
their sum is smallest at the step where rounding is twice the truncation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.method import BatchProduct, MeasuredError, Method
from lossscope.probes.sums import norm

__all__ = [
    "COMPARED_STEP",
    "DIFFERENCES",
    "ERROR_SHARE",
    "EXPONENT",
    "DifferenceError",
    "Differences",
    "line_error",
    "relative_distance",
    "tuned",
]

# exponent of the rounding unit in the step: 1/3 balances rounding and truncation, but crosses more kinks
EXPONENT: Final = 0.4
_GROUP: Final = 0.15  # exponent of the rounding unit in the ratio of scales that may share a step
COMPARED_STEP: Final = 2.0  # step of the difference with which one is compared, in steps
ERROR_SHARE: Final = 1 / 3  # error of a difference, as a share of its distance from that one
_TUNINGS: Final = 2  # times that a better step is tried
_CHANGES: Final = (0.1, 10.0)  # factors by which it may change at a time
_FINE: Final = 1e-6  # relative error up to which the step is kept: a longer one crosses more kinks
_WORTH: Final = 0.5  # ratio of errors below which a step replaces another


@dataclass(frozen=True)
class DifferenceError:
    """Measured error of a central difference along one direction, absolute."""

    truncation: float  # from the third derivative, or from kinks
    rounding: float  # of the gradients
    size: float  # length of the difference

    @property
    def total(self) -> float:
        """Sum of both."""
        return self.truncation + self.rounding

    @property
    def bound(self) -> float:
        """Bound of the error, also where the gradient jumps within the step."""
        return 3 * self.truncation + self.rounding

    @property
    def relative(self) -> float:
        """The bound relative to the difference; 1 at most."""
        return min(1.0, self.bound / self.size) if self.size > 0 else float(self.bound > 0)

    @property
    def change(self) -> float:
        """Factor on the step at which their sum is smallest."""
        # the difference of the two steps contains sqrt(5) / 2 of the rounding
        apart = math.sqrt(max(0.0, (3 * self.truncation) ** 2 - 1.25 * self.rounding**2)) / 3
        best = math.cbrt(self.rounding / (2 * apart)) if apart > 0 else math.inf
        return min(max(best, _CHANGES[0]), _CHANGES[1])


def line_error(
    slope: Callable[[Tensor], Tensor], theta: Tensor, here: Tensor, step: Tensor, scale: float
) -> DifferenceError:
    """Return the error of a central difference, from the gradients at five points of a line.

    Args:
        slope: Returns the gradient at given parameters, `(n,)`.
        theta: `(n,)`, the parameters.
        here: `(n,)`, their gradient.
        step: `(n,)`, the step.
        scale: The step as a multiple of the direction along which the derivative is taken.

    Returns:
        The error for that direction.
    """
    total, near = slope(theta + step), slope(theta - step)  # sum and difference of both sides, in two vectors
    total, near = total + near, (total - near).div_(2 * scale)
    fourth, far = slope(theta + 2 * step), slope(theta - 2 * step)
    fourth, far = fourth + far, (fourth - far).div_(4 * scale)
    fourth.sub_(total, alpha=4).add_(here, alpha=6)
    rounding = float(norm(fourth)) / math.sqrt(70) / (math.sqrt(2) * scale)
    return DifferenceError(float(norm(far - near)) / 3, rounding, float(norm(near)))


def tuned(measure: Callable[[float], DifferenceError], stretch: float) -> tuple[float, DifferenceError]:
    """Return a factor on the step at which the error is small, from a first one, and the error there."""
    found = measure(stretch)
    for _ in range(_TUNINGS if found.relative > _FINE else 0):
        change = found.change
        other = measure(stretch * change)
        if not other.total < _WORTH * found.total:
            break
        found, stretch = other, stretch * change
    return stretch, found


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

    def error(self, direction: Tensor, stretch: float = 1.0) -> DifferenceError:
        """Measure the error of `along` for one direction, from five gradients for each scale of parameters.

        Args:
            direction: `(n,)`.
            stretch: Factor on the length of the step.

        Returns:
            The error; those of parameters of different scale are added.
        """
        theta, direction = self.objective.parameters(), direction.to(self.objective.dtype)
        here, found = self._slope(theta.clone()), []
        for step, scale in self._steps(theta, direction, stretch):
            found.append(line_error(self._slope, theta, here, step, scale))
        return DifferenceError(*(math.fsum(part) for part in zip(*map(astuple, found), strict=True)))

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
        reach = stretch * self.objective.vector.unit**EXPONENT * (float(norm(theta)) or 1.0)
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
        objective, leaves = self.objective, self.objective.leaves(theta)

        def gradient(found: Tensor) -> list[Tensor]:
            objective.inspect(found)
            return objective.derivative(found.reshape(()), leaves)

        return objective.vector.joined(objective.within(gradient, leaves, self._at))


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


def _prepare(stretch: float, objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Prepare products by differences of gradients whose step is stretched."""
    if objective.mode == "train":
        raise ProbeError("method='differences' does not support mode='train', which updates buffers: use mode='frozen'")
    objective.slope(objective.leaves(), at)
    made: list[Differences] = []

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        if not made:
            made.append(Differences(objective, at))
        step = stretch * objective.difference_steps.get(made[0].objective.dtype, 1.0)
        return torch.stack([made[0].along(row, step) for row in rows]).to(rows.dtype)

    return BatchProduct(multiply)


def _measure(objective: Objective, at: BatchEvaluation) -> MeasuredError:
    """Measure the error of products along a random direction, and choose the step at which it is smallest."""
    differences = Differences(objective, at)
    steps, dtype = objective.difference_steps, differences.objective.dtype
    steps[dtype], found = tuned(lambda stretch: differences.error(differences.probe, stretch), steps.get(dtype, 1.0))
    unit = max(torch.finfo(objective.dtype).eps, found.relative)  # products are rounded to the objective's own dtype
    objective.difference_errors[objective.dtype] = unit
    return MeasuredError(unit, found.rounding / float(norm(differences.probe)))


_COMPARED: Final = Method("differences", partial(_prepare, COMPARED_STEP), is_gradient=True)
DIFFERENCES: Final = Method(
    "differences",
    partial(_prepare, 1.0),
    unit=_measure,
    compared=_COMPARED,
    share=ERROR_SHARE,
    is_gradient=True,
    fallback=True,
)
