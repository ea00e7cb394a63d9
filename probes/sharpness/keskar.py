"""Keskar's sharpness: the largest rise of the loss in a small box around the parameters. Legacy."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.ascent import Box, Neighborhood, ascents
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["KeskarSharpness", "keskar_sharpness"]

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
        half_width = epsilon * (objective.parameters().abs() + 1)
        box = Neighborhood(objective, half_width)
        loss = box.value(torch.zeros_like(box.center))
        if loss <= -1:
            raise ProbeError(f"the loss must be above -1 for a relative rise, got {loss:g}")
        best, reached = ascents(box, Box(), _starts(box.center, seed), restarts, loss, rel, max_evaluations)
    rise = max(best.value - loss, 0.0)  # d = 0 is in the box
    displacement = best.point * half_width if best.value > loss else torch.zeros_like(best.point)
    value = 100 * rise / (1 + loss)
    seconds = time.perf_counter() - begun
    estimate = Estimate(
        value, math.nan, value, math.nan, restarts, "lower bound", seconds=seconds, converged=best.converged
    )
    starts = tuple(sorted((value - loss for value in reached), reverse=True))
    return KeskarSharpness(estimate, rise, loss, displacement, starts, box.values, box.gradients)


def _starts(center: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield the parameters themselves, then random points of the box."""
    generator = torch.Generator().manual_seed(seed)
    yield torch.zeros_like(center)
    while True:
        yield Box().random(center, generator)


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
