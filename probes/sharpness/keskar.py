"""Keskar's sharpness: the largest rise of the loss in a small box around the parameters. Legacy."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.step_quality import rounding
from lossscope.probes.statistics.estimate import Estimate
from lossscope.probes.sums import dot

__all__ = ["KeskarSharpness", "keskar_sharpness"]

_SUFFICIENT: Final = 1e-4  # share of the linear prediction that a step must gain (Armijo), the usual choice
_SHRINK: Final = (0.1, 0.5)  # range of the factor by which a rejected step is shortened
_RESOLUTION: Final = 8  # the box must be this many times wider than the spacing of parameter values


@dataclass(frozen=True)
class KeskarSharpness:
    """Largest relative rise of the loss found in the box."""

    sharpness: Estimate  # 100 (max L - L) / (1 + L), bounded from below
    rise: float  # max L - L, nats
    loss: float  # L, nats
    displacement: Tensor  # (n,), the d that reaches the rise
    starts: tuple[float, ...]  # rise reached from each start, descending, nats
    evaluations: int  # losses evaluated
    gradients: int  # gradients evaluated


def keskar_sharpness(
    objective: Objective,
    *,
    epsilon: float = 1e-3,
    restarts: int = 5,
    rel: float = 0.01,
    max_evaluations: int = 200,
    seed: int = 0,
) -> KeskarSharpness:
    r"""Maximize the loss over the box :math:`|d_i| \le \epsilon (|\theta_i| + 1)` and return its relative rise.

    .. math:: \phi = 100 \, \frac{\max_d L(\theta + d) - L(\theta)}{1 + L(\theta)}

    Legacy: it is kept to compare with published values. It is not invariant under rescaling (the 1 in the box is an
    absolute length), it mixes in the level of the loss, and it grows with the number of parameters.

    The maximum is found by spectral projected gradient ascent with a monotone line search, from the parameters
    themselves and from random points of the box. An ascent has converged when the linear model promises no further gain
    above `rel` of the rise anywhere in the box (the Frank-Wolfe gap), or above rounding.

    Memory: about twelve vectors of the length of the parameters beside those of one gradient.

    Args:
        objective: The loss.
        epsilon: Relative half-width of the box. Default: 1e-3, as in the source, which also uses 5e-4.
        restarts: Number of ascents, at least 1: the first starts at the parameters, the others at random.
        rel: Relative accuracy at which an ascent stops, above 0 and below 1.
        max_evaluations: Budget of loss evaluations of all ascents together, at least 2 for each. Each ascent evaluates
            at most one gradient per loss.
        seed: Seed of the random starts.

    Returns:
        The best value found, a lower bound of the maximum. `samples` counts ascents, and `converged` is True if the
        best one has converged.

    Raises:
        ProbeError: An argument is out of range, the loss is at most -1 or not finite in the box, or the parameters'
            dtype is too coarse for the box.

    Source:
        N. S. Keskar et al. (2017), On large-batch training for deep learning: generalization gap and sharp minima,
        arXiv:1609.04836, metric 2.1 on the full space; E. G. Birgin et al. (2000), Nonmonotone spectral projected
        gradient methods on convex sets, SIAM J. Optim. 10, 1196-1211.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([0.0])):
        ...     round(keskar_sharpness(objective, epsilon=0.5).sharpness.value, 6)
        25.0
    """
    _check(objective, epsilon, restarts, rel, max_evaluations)
    begun = time.perf_counter()
    with objective.evaluating():
        box = _Box(objective, epsilon)
        loss = box.value(torch.zeros_like(box.center))
        if loss <= -1:
            raise ProbeError(f"the loss must be above -1 for a relative rise, got {loss:g}")
        best, reached = _ascents(box, loss, restarts, rel, max_evaluations, seed)
    rise = max(best.value - loss, 0.0)  # d = 0 is in the box
    displacement = best.point * box.half_width if best.value > loss else torch.zeros_like(best.point)
    value = 100 * rise / (1 + loss)
    seconds = time.perf_counter() - begun
    estimate = Estimate(
        value, math.nan, value, math.nan, restarts, "lower bound", seconds=seconds, converged=best.converged
    )
    starts = tuple(sorted((value - loss for value in reached), reverse=True))
    return KeskarSharpness(estimate, rise, loss, displacement, starts, box.values, box.gradients)


class _Box:
    """Loss as a function of u in [-1, 1]^n, the displacement in units of the half-width; counts evaluations."""

    def __init__(self, objective: Objective, epsilon: float) -> None:
        self.center = objective.parameters()
        self.half_width = epsilon * (self.center.abs() + 1)
        self.values = self.gradients = 0
        self.objective = objective

    def value(self, u: Tensor) -> float:
        """Return the loss."""
        self.values += 1
        with self.objective.at(self.center + u * self.half_width):
            return self.objective.value()

    def gradient(self, u: Tensor) -> Tensor:
        """Return the gradient with respect to u, `(n,)`."""
        self.gradients += 1
        with self.objective.at(self.center + u * self.half_width):
            return self.objective.gradient() * self.half_width


@dataclass(frozen=True)
class _Ascent:
    """Point that an ascent reached."""

    point: Tensor
    value: float
    converged: bool


def _ascents(
    box: _Box, loss: float, restarts: int, rel: float, max_evaluations: int, seed: int
) -> tuple[_Ascent, list[float]]:
    """Return the best ascent, and what all reached; each may spend its share of the evaluations that are left."""
    generator = torch.Generator().manual_seed(seed)
    best = _Ascent(torch.zeros_like(box.center), -math.inf, False)
    reached: list[float] = []
    for left in range(restarts, 0, -1):
        start = torch.zeros_like(box.center)
        if reached:
            start = (2 * torch.rand(len(start), generator=generator) - 1).to(start)
        limit = box.values + (max_evaluations - box.values) // left
        found = _ascent(box, start, loss, rel, limit)
        reached.append(found.value)
        best = max(best, found, key=lambda ascent: ascent.value)
    return best, reached


def _ascent(box: _Box, u: Tensor, loss: float, rel: float, limit: int) -> _Ascent:
    """Maximize by spectral projected gradient ascent from u until `box.values` reaches the limit."""
    slack = rounding(box.objective, loss)
    value, slope = box.value(u) if u.any() else loss, box.gradient(u)
    length = math.inf
    while True:
        gap = _dot(slope, slope.sign() - u)
        if gap <= max(rel * (value - loss), slack):
            return _Ascent(u, value, True)
        way = _target(u, slope, length) - u
        promised = _dot(slope, way)
        t = 1.0
        while True:
            if box.values >= limit:
                return _Ascent(u, value, False)
            new = box.value(u + t * way)
            if new >= value + _SUFFICIENT * t * promised:
                break
            if t * promised <= slack:
                return _Ascent(u, value, True)  # what is left to gain is below rounding
            parabola = promised * t / (2 * (value + promised * t - new))
            t *= min(max(parabola, _SHRINK[0]), _SHRINK[1])
        step, before = t * way, slope
        u, value = u + step, new
        slope = box.gradient(u)
        curvature = _dot(step, before - slope)
        # along a convex direction the maximum is at the boundary: the longest step, to a vertex
        length = _dot(step, step) / curvature if curvature > 0 else math.inf


def _target(u: Tensor, slope: Tensor, length: float) -> Tensor:
    """Return the projection of a gradient step onto the box; a vertex for an infinite step."""
    if math.isinf(length):
        return torch.where(slope == 0, u, slope.sign())
    return (u + length * slope).clamp(-1, 1)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(dot(a, b))


def _check(objective: Objective, epsilon: float, restarts: int, rel: float, max_evaluations: int) -> None:
    """Reject arguments out of range."""
    if not 0 < epsilon < math.inf:
        raise ProbeError(f"epsilon must be positive and finite, got {epsilon:g}")
    if restarts < 1:
        raise ProbeError(f"restarts must be at least 1, got {restarts}")
    if not 0 < rel < 1:
        raise ProbeError(f"rel must be above 0 and below 1, got {rel:g}")
    if max_evaluations < 2 * restarts:
        raise ProbeError(f"max_evaluations must be at least 2 for each of {restarts} restarts, got {max_evaluations}")
    if epsilon < _RESOLUTION * objective.vector.unit:
        raise ProbeError(
            f"epsilon must be at least {_RESOLUTION * objective.vector.unit:.2g} for the dtype of these parameters, "
            f"got {epsilon:g}: convert the model to float32"
        )
