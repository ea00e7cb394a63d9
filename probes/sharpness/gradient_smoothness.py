"""Gradient-normalized smoothness: the radius within which a linear model of the gradient errs by less than itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import ASSUMED, SymmetricOperator
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.statistics.estimate import Estimate
from lossscope.probes.sums import norm

__all__ = ["GradientSmoothness", "Model", "gradient_smoothness"]

Model = Literal["hessian", "gauss_newton"]

_START: Final = 2.0**-6  # of the norm of the parameters, where the search along a direction begins
_DOUBLINGS: Final = 30


@dataclass(frozen=True)
class GradientSmoothness:
    """Smallest radius over the directions that were tried."""

    radius: Estimate  # its upper end is proven by a point, of the radius of all directions nothing else is known
    by_direction: dict[str, float]  # radius along each direction and its opposite; inf where the model never fails
    gradients: int  # number of gradients


def gradient_smoothness(
    objective: Objective, *, model: Model = "hessian", random: int = 2, rel: float = 1 / 16, seed: int = 0
) -> GradientSmoothness:
    r"""Search the gradient-normalized smoothness, a radius of trust of a second-order model.

    .. math:: \gamma = \max\{\gamma : \|g(\theta + h) - g(\theta) - A h\| \le \|g(\theta)\|\, \|h\| / \gamma
              \text{ for all } \|h\| \le \gamma\}

    with A the Hessian, or the Gauss-Newton matrix. Every h gives the bound
    :math:`\gamma \le \max(\|h\|,\ \|g\| \|h\| / \|g(\theta + h) - g - A h\|)`, which is lowest where the error of the
    model is as long as the gradient. Along both senses of the gradient g, of Ag, and of random directions the smallest
    such length is searched by doubling and bisection. It is infinite on a quadratic with A = H, and at least
    :math:`\sqrt{2 \|g\| / L_2}` where the Hessian is Lipschitz with :math:`L_2`.

    Args:
        objective: The loss.
        model: `hessian` or `gauss_newton`.
        random: Number of random directions, at least 0.
        rel: Relative width at which a bracket is narrow enough, above 0 and below 1.
        seed: Seed of the random directions.

    Returns:
        The smallest radius found. It is an upper bound: `high` is attained by a point, `low` is nan since another
        direction may be worse. Cost: a product for each direction, and about a dozen gradients for each of its senses.

    Raises:
        ProbeError: An argument is out of range, the gradient is zero or not finite, the matrix does not exist, or along
            no direction the model fails by more than rounding.

    Source:
        A. Semenov, M. Jaggi, N. Doikov (2025), Gradient-normalized smoothness for optimization with approximate
        Hessians, arXiv:2506.13710.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).pow(3).mean() / 6, [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):  # sqrt(2 * 2 / 1)
        ...     found = gradient_smoothness(objective, random=0)
        >>> 1.9 < found.radius.value < 2.2
        True
    """
    if model not in get_args(Model):
        raise ProbeError(f"model must be one of {', '.join(map(repr, get_args(Model)))}, got {model!r}")
    if random < 0 or not 0 < rel < 1:
        raise ProbeError(f"random must be at least 0 and rel in (0, 1), got {random} and {rel:g}")
    begun = time.perf_counter()
    operator = hessian(objective) if model == "hessian" else gauss_newton(objective)
    with objective.evaluating():
        theta, g = objective.parameters(), objective.gradient()
        length = float(norm(g))
        if not 0 < length < math.inf:
            raise ProbeError(f"the gradient must be finite and not zero, got the norm {length:g}")
        start = _START * (float(norm(theta)) or 1.0)
        found, count = {}, 1
        for name, u in _directions(operator, g, random, seed):
            image = operator @ u
            ends = [_Ray(objective, theta, g, sign * u, sign * image) for sign in (-1.0, 1.0)]
            found[name] = min(ray.radius(start, rel) for ray in ends)
            count += sum(ray.gradients for ray in ends)
    radius = min(found.values())
    if not math.isfinite(radius):
        raise ProbeError(
            "along no direction tried does the linear model of the gradient fail by more than rounding (the loss is "
            "quadratic, or its dtype too coarse): the radius is too large to be measured"
        )
    seconds = time.perf_counter() - begun
    estimate = Estimate(
        radius, math.nan, math.nan, radius, len(found), "upper bound", products=operator.products, seconds=seconds
    )
    return GradientSmoothness(estimate, found, count)


class _Ray:
    """Error of the linear model of the gradient along one direction."""

    def __init__(self, objective: Objective, theta: Tensor, g: Tensor, u: Tensor, image: Tensor) -> None:
        self._objective, self._theta, self._g, self._u, self._image = objective, theta, g, u, image
        self._length, self._slope = float(norm(g)), float(norm(image))
        self.gradients = 0

    def radius(self, start: float, rel: float) -> float:
        """Return the shortest length found at which the error is as long as the gradient, or infinity."""
        high = self._first_failure(start)
        if math.isinf(high):
            return high
        low = high / 2
        while self._fails(low):
            high, low = low, low / 2
        while 1 - low / high > rel:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._fails(middle) else (middle, high)
        return high

    def _first_failure(self, start: float) -> float:
        """Return the first length of doublings of the start at which the model fails; infinity if rounding hides it."""
        t = start
        for _ in range(_DOUBLINGS):
            if ASSUMED * self._objective.vector.unit * t * self._slope > self._length / 2:
                break
            if self._fails(t):
                return t
            t *= 2
        return math.inf

    def _fails(self, t: float) -> bool:
        """Return True if the error at a length is at least as long as the gradient; a loss that overflows fails too."""
        self.gradients += 1
        try:
            with self._objective.at(self._theta + t * self._u):
                change = self._objective.gradient() - self._g
        except ProbeError:  # no finite loss there
            return True
        return not float(norm(change - t * self._image)) < self._length


def _directions(operator: SymmetricOperator, g: Tensor, random: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield directions of length 1: the gradient, its image, and random ones drawn on the CPU."""
    image = operator @ g
    if bool(image.any()):
        yield "image of the gradient", image / norm(image).to(g.dtype)
    yield "gradient", g / norm(g).to(g.dtype)
    generator = torch.Generator().manual_seed(seed)
    for i in range(random):
        z = torch.randn(len(g), generator=generator, dtype=torch.float32).to(g)
        yield f"random {i + 1}", z / norm(z).to(g.dtype)
