"""Quality of the second-order model of the loss along a step: Taylor remainders, trust ratio, secant curvature."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.directional import DirectionalSharpness, directional_sharpness
from lossscope.probes.sums import dot, norm

__all__ = [
    "LayerRemainders",
    "SecantCurvature",
    "StepQuality",
    "layer_remainders",
    "rounding",
    "secant_curvature",
    "step_quality",
]

_ROUNDINGS: Final = 4  # error bound of two losses and their difference, in units in the last place


@dataclass(frozen=True)
class StepQuality:
    """Change of the loss of fixed data over a step, with its first- and second-order predictions."""

    change: float  # L(theta + D) - L(theta), nats; below 0 for a decrease
    along: DirectionalSharpness  # g'D and D'HD
    first_remainder: float  # R1 = change - g'D, nats
    second_remainder: float  # R2 = R1 - D'HD / 2, nats
    relative_first: float  # r1 = |R1| / |g'D|; nan if g'D is 0
    relative_second: float  # r2 = |R2| / (|g'D| + |D'HD| / 2); nan if both are 0
    trust_ratio: float  # change / (g'D + D'HD / 2); nan if that is 0
    rounding: float  # rounding error bound of the change, R1 and R2, nats

    @property
    def slope(self) -> float:
        """g'D, nats."""
        return self.along.slope.value

    @property
    def curvature(self) -> float:
        """D'HD, nats."""
        return self.along.curvature.value


@dataclass(frozen=True)
class SecantCurvature:
    """Mean Hessian over the segment of a step along the step, from the gradients at both ends."""

    rayleigh: float  # s'y / s's, nats; signed
    norm: float  # |y| / |s|, nats
    alignment: float  # s'y / (|s| |y|), from -1 to 1; nan if the gradient did not change
    rounding: float  # rounding error bound of the first two, nats
    alignment_rounding: float  # rounding error bound of the alignment


def step_quality(objective: Objective, displacement: Tensor, *, at: Tensor | None = None) -> StepQuality:
    r"""Compare the change of the loss over a step with the prediction from slope and curvature.

    .. math:: R_1 = L(\theta + D) - L(\theta) - g^\top D, \qquad R_2 = R_1 - \tfrac12 D^\top H D

    On a quadratic, R2 is 0 and R1 half the curvature; on a cubic :math:`a t^3` from 0, R2 is :math:`a t^3`. The trust
    ratio is 1 if the second-order model is exact, and below 0 if its sign is wrong.

    Args:
        objective: The loss; all terms are on its data, the same before and after.
        displacement: `(n,)`, D, parameters after the step minus before.
        at: `(n,)`, parameters before the step. Default: the model's current parameters.

    Returns:
        The numbers, exact on the fixed data up to `rounding`: a remainder below it is unknown, not small. Cost: two
        losses, one gradient and one product. The model is restored bit for bit.

    Raises:
        ProbeError: A shape does not match, or the displacement or a loss is not finite.

    Source:
        docs/measures/step_quality.md.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(1, 1)])
        >>> found = step_quality(objective, torch.tensor([-1.0]), at=torch.tensor([2.0]))
        >>> found.change, found.slope, found.first_remainder, found.second_remainder, found.trust_ratio
        (-3.0, -4.0, 1.0, 0.0, 1.0)
    """
    with objective.at(at) if at is not None else nullcontext():
        s = _rounded_step(objective, displacement)
        along = directional_sharpness(objective, s)
        before, theta = objective.value(), objective.parameters()
        with objective.at(theta + s):
            after = objective.value()
    change, slope, curvature = after - before, along.slope.value, along.curvature.value
    first = change - slope
    second, predicted = first - curvature / 2, slope + curvature / 2
    return StepQuality(
        change,
        along,
        first,
        second,
        _over(abs(first), abs(slope)),
        _over(abs(second), abs(slope) + abs(curvature) / 2),
        _over(change, predicted),
        rounding(objective, before, after),
    )


def rounding(objective: Objective, *losses: float) -> float:
    """Return the rounding error bound of a difference of losses, nats: four units in the last place of the largest."""
    return _ROUNDINGS * objective.vector.unit * max(map(abs, losses))


def secant_curvature(objective: Objective, displacement: Tensor, *, at: Tensor | None = None) -> SecantCurvature:
    r"""Compute the secant curvature of a step from the gradients of the same data at both of its ends.

    With :math:`s = D` and :math:`y = g(\theta + D) - g(\theta) = \bar H s`, :math:`\bar H` the mean Hessian over the
    segment: :math:`s^\top y / s^\top s` is its Rayleigh quotient along the step, :math:`|y|/|s|` is at least as large,
    and their ratio, the alignment, has absolute value 1 only along an eigenvector. With gradients of different batches,
    y would contain their noise.

    Args:
        objective: The loss.
        displacement: `(n,)`, D, parameters after the step minus before.
        at: `(n,)`, parameters before the step. Default: the model's current parameters.

    Returns:
        The numbers; all nan if the step is zero. Cost: two gradients. The model is restored bit for bit.

    Raises:
        ProbeError: A shape does not match, or the displacement or the loss is not finite.

    Source:
        J. Barzilai and J. Borwein (1988), Two-point step size gradient methods, IMA J. Numer. Anal. 8(1), 141-148.
    """
    with objective.at(at) if at is not None else nullcontext():
        s = _rounded_step(objective, displacement)
        before, theta = objective.gradient(), objective.parameters()
        with objective.at(theta + s):
            after = objective.gradient()
    y = after - before
    sizes = float(norm(before) + norm(after))
    product, length, change = float(dot(s, y)), float(norm(s)), float(norm(y))
    error = _ROUNDINGS * objective.vector.unit * sizes  # rounding error bound of |y|
    return SecantCurvature(
        _over(product, length * length),
        _over(change, length),
        _over(product, length * change),
        _over(error, length),
        _over(error, change),
    )


def _rounded_step(objective: Objective, displacement: Tensor) -> Tensor:
    """Return the displacement rounded as the dtype of the current parameters rounds it.

    Args:
        objective: The loss.
        displacement: `(n,)`.

    Returns:
        `(n,)`; for a bfloat16 parameter, a step below half its last place is 0.

    Raises:
        ProbeError: The shape does not match, or the displacement is not finite.
    """
    if not bool(torch.isfinite(displacement).all()):
        raise ProbeError("displacement must be finite, got nan or inf: the optimizer step itself failed")
    theta = objective.parameters()
    moved = objective.vector.split(theta + objective.vector.fitting(displacement))
    return objective.vector.joined(moved) - theta


def _over(above: float, below: float) -> float:
    """Return the ratio; nan if the denominator is 0."""
    return above / below if below else math.nan


@dataclass(frozen=True)
class LayerRemainders:
    """First-order Taylor remainder of each parameter tensor."""

    by_name: dict[str, float]  # nats
    rounding: float  # rounding error bound of each, nats


def layer_remainders(objective: Objective, displacement: Tensor, *, at: Tensor | None = None) -> LayerRemainders:
    r"""Compute the first-order Taylor remainder of each parameter tensor, moved alone by its part of the step.

    .. math:: R_l = L(\theta + D_l) - L(\theta) - g_l^\top D_l

    It is half the curvature of the layer's diagonal block along its part of the step, plus higher orders. The
    remainders do not add up to that of the whole step, which includes the curvature between layers.

    Args:
        objective: The loss.
        displacement: `(n,)`, D, parameters after the step minus before.
        at: `(n,)`, parameters before the step. Default: the model's current parameters.

    Returns:
        Nats, by parameter name. A remainder below `rounding` is unknown, not small. Cost: one gradient, and one loss
        per parameter tensor. The model is restored bit for bit.

    Raises:
        ProbeError: A shape does not match, or the displacement or a loss is not finite.

    Source:
        docs/measures/step_quality.md.
    """
    with objective.at(at) if at is not None else nullcontext(), objective.evaluating():
        s, theta = _rounded_step(objective, displacement), objective.parameters()
        before, slopes = objective.value(), objective.gradient().double() * s.double()
        found, losses = {}, [before]
        for name in objective.names:
            where = objective.vector.indices([name]).to(s.device)
            moved = theta.clone()
            moved[where] += s[where]
            with objective.at(moved):
                losses.append(objective.value())
            found[name] = losses[-1] - before - float(slopes[where].sum())
    return LayerRemainders(found, rounding(objective, *losses))
