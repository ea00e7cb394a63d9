"""Where the second gradient is taken: four ascents `e` from the base gradient, and two at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossscope.optimizer.ascent.seeded_noise import SeededNoise
from lossscope.optimizer.ascent.surrogate import norm_of
from lossscope.optimizer.errors import OptimizerError

__all__ = ["PERTURBATIONS", "RANDOM", "Ascent"]

_FLOOR: Final = 1e-12


@dataclass(frozen=True)
class Ascent:
    """What one parameter brings to the ascent."""

    parameter: Tensor
    gradient: Tensor
    second_moment: Tensor | None  # v before this step's gradient entered it; None in a method without one
    steps: int  # updates of v so far
    beta2: float
    eps: float
    rho: float
    draw: SeededNoise  # of a random ascent


def _root_of_stale_second_moment(ascent: Ascent) -> Tensor:
    if ascent.second_moment is None:
        raise OptimizerError(
            "this method has no second moment to whiten an ascent with; use perturbation='sam' or 'asam'"
        )
    correction = 1 - ascent.beta2 ** max(1, ascent.steps) + _FLOOR
    return (ascent.second_moment / correction).sqrt_().add_(ascent.eps)


def _over_one_ball(directions: Sequence[Tensor], norms_of: Sequence[Tensor], rhos: Sequence[float]) -> list[Tensor]:
    norm = norm_of(norms_of) + _FLOOR
    return [direction * (rho / norm) for direction, rho in zip(directions, rhos, strict=True)]


def ars2(ascents: Sequence[Ascent]) -> list[Tensor]:
    """Per tensor `rho n / |n|` with `n = |w| g / (sqrt(v) + eps)`: every tensor moves by exactly rho.

    The total is rho times the root of the number of tensors; a tensor of zeros does not move.
    """
    moves = []
    for a in ascents:
        n = a.parameter.abs().mul_(a.gradient).div_(_root_of_stale_second_moment(a))
        moves.append(n.mul_(a.rho / (torch.linalg.vector_norm(n) + _FLOOR)))
    return moves


def paper(ascents: Sequence[Ascent]) -> list[Tensor]:
    """`rho n / |n|` with `n = g / (sqrt(v) + eps)` over one global ball."""
    naturals = [a.gradient / _root_of_stale_second_moment(a) for a in ascents]
    return _over_one_ball(naturals, naturals, [a.rho for a in ascents])


def sam(ascents: Sequence[Ascent]) -> list[Tensor]:
    """`rho g / |g|` over one global ball (Foret et al., 2021, equation 2)."""
    gradients = [a.gradient for a in ascents]
    return _over_one_ball(gradients, gradients, [a.rho for a in ascents])


def asam(ascents: Sequence[Ascent]) -> list[Tensor]:
    """`rho w^2 g / | |w| g |` over one global ball: steepest where distance is counted relative to |w|.

    Source:
        Kwon et al., "ASAM" (2021).
    """
    scaled = [a.parameter.abs().mul_(a.gradient) for a in ascents]
    moves = [a.parameter.abs().mul_(s) for a, s in zip(ascents, scaled, strict=True)]
    return _over_one_ball(moves, scaled, [a.rho for a in ascents])


def random(ascents: Sequence[Ascent]) -> list[Tensor]:
    """Per tensor `rho z / |z|` with normal z: the control of `ars2`, which asks whether its direction matters.

    Every tensor moves by exactly rho, a tensor of zeros as well, which under `ars2` stays.
    """
    drawn = [a.draw.normal_like(a.parameter) for a in ascents]
    return [z.mul_(a.rho / (torch.linalg.vector_norm(z) + _FLOOR)) for a, z in zip(ascents, drawn, strict=True)]


def random_ball(ascents: Sequence[Ascent]) -> list[Tensor]:
    """`rho z / |z|` with normal z over one global ball: the control of `paper` and `sam`, whose ball it is.

    Of `asam` too, though that measures its ball relative to |w|; and a tensor of zeros moves, which under `asam` stays.
    """
    drawn = [a.draw.normal_like(a.parameter) for a in ascents]
    return _over_one_ball(drawn, drawn, [a.rho for a in ascents])


PERTURBATIONS: Final[dict[str, Callable[[Sequence[Ascent]], list[Tensor]]]] = {
    "ars2": ars2,
    "paper": paper,
    "sam": sam,
    "asam": asam,
    "random": random,
    "random_ball": random_ball,
}
RANDOM: Final = ("random", "random_ball")  # of these, drawn anew at each step
