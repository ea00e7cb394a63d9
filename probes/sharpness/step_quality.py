"""How good the second-order model of the loss was along a step, and the curvature that the step itself met."""

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

__all__ = [
    "LayerRemainders",
    "SecantCurvature",
    "StepQuality",
    "layer_remainders",
    "rounding",
    "secant_curvature",
    "step_quality",
    "step_taken",
]

_ROUNDINGS: Final = 4  # units in the last place that two losses and their difference may be off by


@dataclass(frozen=True)
class StepQuality:
    """What a step did to the loss of fixed data, and what its models of first and second order had said."""

    change: float  # L(theta + D) - L(theta), nats; below 0 for a decrease
    along: DirectionalSharpness  # g'D and D'HD
    first_remainder: float  # R1 = change - g'D, nats
    second_remainder: float  # R2 = R1 - D'HD / 2, nats
    relative_first: float  # r1 = |R1| / |g'D|; a gap where g'D is 0
    relative_second: float  # r2 = |R2| / (|g'D| + |D'HD| / 2); a gap where both are 0
    trust_ratio: float  # change / (g'D + D'HD / 2); a gap where that is 0
    rounding: float  # by how much the change, R1 and R2 may be off, nats

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
    """The mean Hessian over the segment of a step, as its two gradients show it."""

    rayleigh: float  # s'y / s's, nats; signed
    norm: float  # |y| / |s|, nats
    alignment: float  # s'y / (|s| |y|), from -1 to 1; a gap where the gradient did not change
    rounding: float  # by how much the first two may be off, nats
    alignment_rounding: float  # by how much the alignment may be off


def step_quality(objective: Objective, displacement: Tensor, *, at: Tensor | None = None) -> StepQuality:
    r"""How far a step's actual change of the loss is from the change that slope and curvature had predicted.

    .. math:: R_1 = L(\theta + D) - L(\theta) - g^\top D, \qquad R_2 = R_1 - \tfrac12 D^\top H D

    On a quadratic R2 is 0 and R1 half the curvature; on a cubic :math:`a t^3` from 0 R2 is :math:`a t^3`. The trust
    ratio is 1 where the second-order model is right, and below 0 where it had the sign wrong.

    Args:
        objective: The loss; all terms are on its data, the same before and after.
        displacement: `(n,)`, D, parameters after the step minus before.
        at: `(n,)`, the parameters before the step; None for those the model has now.

    Returns:
        The numbers, exact on the fixed data up to `rounding`: a remainder below it is unknown, not small. Two losses,
        one gradient and one product are spent; the model is left bit for bit.

    Raises:
        ProbeError: a shape does not fit, the displacement or a loss is not finite.

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
        s = step_taken(objective, displacement)
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
    """By how much a difference of these losses may be off, nats: four units in the last place of the largest."""
    return _ROUNDINGS * objective.vector.unit * max(map(abs, losses))


def secant_curvature(objective: Objective, displacement: Tensor, *, at: Tensor | None = None) -> SecantCurvature:
    r"""The curvature that a step met, from the gradients of the same data at both of its ends.

    With :math:`s = D` and :math:`y = g(\theta + D) - g(\theta) = \bar H s`, :math:`\bar H` the mean Hessian over the
    segment: :math:`s^\top y / s^\top s` is its Rayleigh quotient along the step, :math:`|y|/|s|` is never smaller, and
    the alignment, one over the other, is 1 in size along an eigenvector only. With gradients of different batches, y
    would hold their noise.

    Args:
        objective: The loss.
        displacement: `(n,)`, D, parameters after the step minus before.
        at: `(n,)`, the parameters before the step; None for those the model has now.

    Returns:
        The numbers; all gaps where the step is zero. Two gradients are spent; the model is left bit for bit.

    Raises:
        ProbeError: a shape does not fit, the displacement or the loss is not finite.

    Source:
        J. Barzilai and J. Borwein (1988), Two-point step size gradient methods, IMA J. Numer. Anal. 8(1), 141-148.
    """
    with objective.at(at) if at is not None else nullcontext():
        s = step_taken(objective, displacement)
        before, theta = objective.gradient(), objective.parameters()
        with objective.at(theta + s):
            after = objective.gradient()
    y, s = after.double() - before.double(), s.double()
    sizes = float(torch.linalg.vector_norm(before.double()) + torch.linalg.vector_norm(after.double()))
    product, length, change = float(s @ y), float(torch.linalg.vector_norm(s)), float(torch.linalg.vector_norm(y))
    off = _ROUNDINGS * objective.vector.unit * sizes  # of y, in norm
    return SecantCurvature(
        _over(product, length * length),
        _over(change, length),
        _over(product, length * change),
        _over(off, length),
        _over(off, change),
    )


def step_taken(objective: Objective, displacement: Tensor) -> Tensor:
    """The displacement as the parameters can take it from where they stand: rounded to their dtype.

    Args:
        objective: The loss.
        displacement: `(n,)`.

    Returns:
        `(n,)`; of a bfloat16 parameter, a step below its last place is 0.

    Raises:
        ProbeError: the shape does not fit, or the displacement is not finite.
    """
    if not bool(torch.isfinite(displacement).all()):
        raise ProbeError("the displacement is not finite: the step itself has failed, nothing can be measured along it")
    theta = objective.parameters()
    moved = objective.vector.split(theta + objective.vector.fitting(displacement))
    return objective.vector.joined(moved) - theta


def _over(above: float, below: float) -> float:
    """The ratio; a gap where it is divided by 0."""
    return above / below if below else math.nan


@dataclass(frozen=True)
class LayerRemainders:
    """The remainder of each parameter tensor."""

    by_name: dict[str, float]  # nats
    rounding: float  # nats that each may be off by


def layer_remainders(objective: Objective, displacement: Tensor, *, at: Tensor | None = None) -> LayerRemainders:
    r"""The Taylor remainder of first order of each parameter tensor, were it alone to take its part of the step.

    .. math:: R_l = L(\theta + D_l) - L(\theta) - g_l^\top D_l

    It is half the curvature of the layer's own block along its part of the step, and what is beyond. They do not add
    up to the remainder of the whole step, which has the curvature between layers too.

    Args:
        objective: The loss.
        displacement: `(n,)`, D, parameters after the step minus before.
        at: `(n,)`, the parameters before the step; None for those the model has now.

    Returns:
        Nats, by the names of the parameters. One gradient is spent, and one loss for each of them; the model is left
        bit for bit. What is below the rounding is unknown, not small.

    Raises:
        ProbeError: a shape does not fit, the displacement or a loss is not finite.

    Source:
        docs/measures/step_quality.md.
    """
    with objective.at(at) if at is not None else nullcontext(), objective.evaluating():
        s, theta = step_taken(objective, displacement), objective.parameters()
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
