"""Largest loss around the parameters: spectral projected gradient ascent in a box or a ball, from several starts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.step_quality import rounding
from lossscope.probes.sums import dot, norm

__all__ = ["Ascent", "Ball", "Box", "Neighborhood", "Region", "ascents"]

_SUFFICIENT: Final = 1e-4  # share of the linear prediction that a step must gain (Armijo), the usual choice
_SHRINK: Final = (0.1, 0.5)  # range of the factor by which a rejected step is shortened


class Region(Protocol):
    """Convex set of points u around 0."""

    def furthest(self, slope: Tensor, u: Tensor) -> Tensor:
        """Return the point of the region with the largest inner product with the slope; u along a zero slope."""

    def nearest(self, u: Tensor) -> Tensor:
        """Return the point of the region that is closest to u."""

    def random(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random point, drawn on the CPU so that all devices get the same."""


class Box:
    """Points whose entries are all in [-1, 1]."""

    def furthest(self, slope: Tensor, u: Tensor) -> Tensor:
        """Return the corner along the slope; entries without a slope stay."""
        return torch.where(slope == 0, u, slope.sign())

    def nearest(self, u: Tensor) -> Tensor:
        """Return the point with every entry cut to the box."""
        return u.clamp(-1, 1)

    def random(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return a point of the uniform distribution."""
        return (2 * torch.rand(len(like), generator=generator) - 1).to(like)


class Ball:
    """Points of length 1 or less."""

    def furthest(self, slope: Tensor, u: Tensor) -> Tensor:
        """Return the point of length 1 along the slope."""
        length = float(norm(slope))
        return slope / length if length > 0 else u

    def nearest(self, u: Tensor) -> Tensor:
        """Return u, shortened to length 1 if it is longer."""
        return u / max(float(norm(u)), 1.0)

    def random(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random direction of length 1."""
        u = torch.randn(len(like), generator=generator).to(like)
        return u / float(norm(u))


class Neighborhood:
    """Loss as a function of u, the displacement in units of a scale for each parameter; counts evaluations."""

    def __init__(self, objective: Objective, scale: Tensor) -> None:
        self.center, self.scale, self.objective = objective.parameters(), scale, objective
        self.values = self.gradients = 0

    def value(self, u: Tensor) -> float:
        """Return the loss."""
        self.values += 1
        with self.objective.at(self.center + u * self.scale):
            return self.objective.value()

    def gradient(self, u: Tensor) -> Tensor:
        """Return the gradient with respect to u, `(n,)`."""
        self.gradients += 1
        with self.objective.at(self.center + u * self.scale):
            return self.objective.gradient() * self.scale


@dataclass(frozen=True)
class Ascent:
    """Point that an ascent reached."""

    point: Tensor
    value: float
    converged: bool


def ascents(
    around: Neighborhood, region: Region, starts: Iterable[Tensor], count: int, loss: float, rel: float, most: int
) -> tuple[Ascent, list[float]]:
    """Maximize the loss over a region.

    An ascent has converged when the linear model promises no further gain above `rel` of the rise anywhere in the
    region (the Frank-Wolfe gap), or above rounding.

    Args:
        around: The loss around the parameters.
        region: The points u that are allowed.
        starts: Starts of the ascents, at least `count`, made when they are needed.
        count: Number of ascents, at least 1.
        loss: The loss at the parameters.
        rel: Share of the rise at which an ascent stops.
        most: Budget of loss evaluations; each ascent may spend its share of those that are left.

    Returns:
        The best ascent, and the loss that each reached.
    """
    best = Ascent(torch.zeros_like(around.center), -math.inf, False)
    reached: list[float] = []
    for left, start in zip(range(count, 0, -1), starts, strict=False):
        limit = around.values + (most - around.values) // left
        found = _ascent(around, region, start, loss, rel, limit)
        reached.append(found.value)
        best = max(best, found, key=lambda ascent: ascent.value)
    return best, reached


def _ascent(around: Neighborhood, region: Region, u: Tensor, loss: float, rel: float, limit: int) -> Ascent:
    """Maximize by spectral projected gradient ascent from u until `around.values` reaches the limit."""
    slack = rounding(around.objective, loss)
    value, slope = around.value(u) if u.any() else loss, around.gradient(u)
    length = math.inf
    while True:
        gap = _dot(slope, region.furthest(slope, u) - u)
        if gap <= max(rel * (value - loss), slack):
            return Ascent(u, value, True)
        way = _target(region, u, slope, length) - u
        promised = _dot(slope, way)
        t = 1.0
        while True:
            if around.values >= limit:
                return Ascent(u, value, False)
            new = around.value(u + t * way)
            if new >= value + _SUFFICIENT * t * promised:
                break
            if t * promised <= slack:
                return Ascent(u, value, True)  # what is left to gain is below rounding
            parabola = promised * t / (2 * (value + promised * t - new))
            t *= min(max(parabola, _SHRINK[0]), _SHRINK[1])
        step, before = t * way, slope
        u, value = u + step, new
        slope = around.gradient(u)
        curvature = _dot(step, before - slope)
        # along a convex direction the maximum is at the boundary: the longest step, to a vertex
        length = _dot(step, step) / curvature if curvature > 0 else math.inf


def _target(region: Region, u: Tensor, slope: Tensor, length: float) -> Tensor:
    """Return the projection of a gradient step onto the region; its furthest point for an infinite step."""
    return region.furthest(slope, u) if math.isinf(length) else region.nearest(u + length * slope)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(dot(a, b))
