"""Perturbations `e` at which the second gradient is taken: four along the base gradient, and two at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossscope.optimizer.ascent.seeded_noise import SeededNoise
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update import sums

__all__ = ["PERTURBATIONS", "RANDOM", "WHITENED", "Ascent"]

_FLOOR: Final = 1e-12


@dataclass(frozen=True)
class Ascent:
    """One parameter of an ascent."""

    parameter: Tensor
    gradient: Tensor
    second_moment: Tensor | None  # v before it was updated with this step's gradient; None in a rule without one
    steps: int  # updates of v so far
    beta2: float
    eps: float
    rho: float
    draw: SeededNoise  # for a random ascent


def _root_of_stale_second_moment(ascent: Ascent) -> Tensor:
    if ascent.second_moment is None:
        raise OptimizerError(
            "this rule has no second moment to whiten an ascent with; use perturbation='sam' or 'asam'"
        )
    correction = 1 - ascent.beta2 ** max(1, ascent.steps) + _FLOOR
    return (ascent.second_moment / correction).sqrt_().add_(ascent.eps)


def _over_one_ball(directions: Sequence[Tensor], size: sums.Number, rhos: Sequence[float]) -> list[Tensor]:
    """Return `rho direction / size` for each direction."""
    factors = {rho: rho / (size + _FLOOR) for rho in set(rhos)}
    return [sums.times(direction, factors[rho]) for direction, rho in zip(directions, rhos, strict=True)]


def _in_range(direction: Tensor, gradient: Tensor) -> Tensor:
    """Bound a direction by the largest number of its dtype, which huge gradients over small moments would leave.

    Where the gradient itself is not finite, the direction is NaN.
    """
    largest = torch.finfo(direction.dtype).max
    return direction.clamp_(-largest, largest).add_(gradient, alpha=0.0)


def _bounded(directions: Sequence[Tensor], gradients: Sequence[Tensor]) -> sums.Number:
    """Bound directions as `_in_range` does, in place, and return their norm.

    Where a norm is a float, which costs nothing to read, a finite one tells that no direction has left the range and
    that every gradient is finite.
    """
    if directions and sums.read_at_once(directions[0]):
        size = sums.norm(*directions)
        if math.isfinite(size):
            return size
    for direction, gradient in zip(directions, gradients, strict=True):
        _in_range(direction, gradient)
    return sums.norm(*directions)


def ars2(ascents: Sequence[Ascent]) -> list[Tensor]:
    """Return, per tensor, `rho n / |n|` with `n = |w| g / (sqrt(v) + eps)`: every tensor moves by exactly rho.

    The total norm is rho times the square root of the number of tensors; a tensor of zeros does not move.
    """
    moves = []
    for a in ascents:
        n = a.parameter.abs().mul_(a.gradient).div_(_root_of_stale_second_moment(a))
        moves.append(sums.times(n, a.rho / (_bounded([n], [a.gradient]) + _FLOOR)))
    return moves


def paper(ascents: Sequence[Ascent]) -> list[Tensor]:
    """Return `rho n / |n|` with `n = g / (sqrt(v) + eps)` over one global ball."""
    naturals = [a.gradient / _root_of_stale_second_moment(a) for a in ascents]
    size = _bounded(naturals, [a.gradient for a in ascents])
    return _over_one_ball(naturals, size, [a.rho for a in ascents])


def sam(ascents: Sequence[Ascent]) -> list[Tensor]:
    """Return `rho g / |g|` over one global ball (Foret et al., 2021, equation 2)."""
    gradients = [a.gradient for a in ascents]
    return _over_one_ball(gradients, sums.norm(*gradients), [a.rho for a in ascents])


def asam(ascents: Sequence[Ascent]) -> list[Tensor]:
    """Return `rho w^2 g / | |w| g |` over one global ball: steepest ascent if distance is measured relative to |w|.

    Source:
        Kwon et al., "ASAM" (2021).
    """
    sizes = [a.parameter.abs() for a in ascents]
    scaled = [w * a.gradient for w, a in zip(sizes, ascents, strict=True)]
    size = _bounded(scaled, [a.gradient for a in ascents])
    moves = [_in_range(w.mul_(s), s) for w, s in zip(sizes, scaled, strict=True)]
    return _over_one_ball(moves, size, [a.rho for a in ascents])


def random(ascents: Sequence[Ascent]) -> list[Tensor]:
    """Return, per tensor, `rho z / |z|` with normal z: a control for `ars2` that tests whether its direction matters.

    Every tensor moves by exactly rho, including a tensor of zeros, which does not move under `ars2`.
    """
    drawn = [a.draw.normal_like(a.parameter) for a in ascents]
    return [sums.times(z, a.rho / (sums.norm(z) + _FLOOR)) for a, z in zip(ascents, drawn, strict=True)]


def random_ball(ascents: Sequence[Ascent]) -> list[Tensor]:
    """Return `rho z / |z|` with normal z over one global ball: a control for `paper` and `sam`, which use this ball.

    It is a control for `asam` too, although `asam` measures its ball relative to |w| and does not move a tensor of
    zeros.
    """
    drawn = [a.draw.normal_like(a.parameter) for a in ascents]
    return _over_one_ball(drawn, sums.norm(*drawn), [a.rho for a in ascents])


PERTURBATIONS: Final[dict[str, Callable[[Sequence[Ascent]], list[Tensor]]]] = {
    "ars2": ars2,
    "paper": paper,
    "sam": sam,
    "asam": asam,
    "random": random,
    "random_ball": random_ball,
}
RANDOM: Final = ("random", "random_ball")  # drawn anew at each step
WHITENED: Final = ("ars2", "paper")  # these need a second moment
