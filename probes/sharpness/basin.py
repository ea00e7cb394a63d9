"""Basin radius and noise curve: the mean rise of the loss under random relative noise on every parameter."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.noise import Noise
from lossscope.probes.sharpness.noise_radius import noise_radius, require_noise
from lossscope.probes.statistics.estimate import Estimate, mean_estimate

__all__ = ["SIGMAS", "NoiseCurve", "basin_radius", "noise_curve"]

Array: TypeAlias = NDArray[np.float64]

SIGMAS: Final = tuple(float(10 ** (i / 4 - 2)) for i in range(9))  # 0.01 to 1, four a decade


@dataclass(frozen=True, eq=False)
class NoiseCurve:
    """Mean rise of the loss by the size of the relative noise; nan where the loss is not finite at a draw."""

    sigmas: Array  # (k,), ascending: standard deviation of the relative noise
    mean: Array  # (k,), mean over the draws of L(theta (1 + sigma z)) - L(theta), nats; it may be negative
    low: Array  # (k,), lower end of the 95 % interval of the mean over all noise
    high: Array  # (k,), upper end
    rises: Array  # (k, draws), the rise of each draw
    loss: float  # L(theta), nats
    seed: int
    seconds: float

    @property
    def not_finite(self) -> tuple[float, ...]:
        """Noise levels at which the loss of a draw is not finite, so that the mean is missing."""
        return tuple(float(one) for one in self.sigmas[~np.isfinite(self.rises).all(1)])


def basin_radius(
    objective: Objective,
    *,
    rise: float = 0.1,
    draws: int = 32,
    rel: float = 0.01,
    seed: int = 0,
    known: NoiseCurve | None = None,
) -> Estimate:
    r"""Find the relative noise :math:`\sigma^*` at which the mean loss has risen by a given amount.

    .. math:: E_z L(\theta + \sigma^* \theta \odot z) - L(\theta) = \text{rise}, \qquad z \sim N(0, I)

    Every weight is multiplied by :math:`1 + \sigma z_i`, which has the law of an addition of
    :math:`\sigma |\theta_i| z_i`. The same z serve at every noise level (common random numbers), so the mean over the
    draws is a continuous function of :math:`\sigma`, and its crossing is bracketed and found in :math:`\ln \sigma` by
    bisection and interpolation. At a minimum, for a small rise, :math:`\sigma^* = \sqrt{2 \, \text{rise} / t}` with t
    the adaptive trace. Under any diagonal map of the parameters that preserves the function it is the same number with
    the same seed, up to rounding.

    Args:
        objective: The loss.
        rise: Rise of the loss that ends the basin, nats, above 0.
        draws: Number of random z, at least 16.
        rel: Relative accuracy at which the crossing of these draws is found, above 0 and below 1.
        seed: Seed of the draws, and of the bootstrap.
        known: Noise curve of the same objective at the same parameters, draws and seed, whose points are used again.

    Returns:
        The radius, dimensionless, with the 95 % interval of a studentized bootstrap over the draws. Cost: `draws`
        losses for each of about five noise levels. The model is not written. Memory: about five vectors of the length
        of the parameters; z is drawn again where it is needed.

    Raises:
        ProbeError: An argument is out of range, the loss is not finite, its rounding is not small beside the rise, or
            the radius is not between 1e-4 and 10.

    Source:
        Y. Jiang et al. (2020), Fantastic generalization measures and where to find them, arXiv:1912.02178, for the
        noise at a target rise, here with the magnitude-aware noise; docs/measures/basin.md.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: (model(x) - 2).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):
        ...     found = basin_radius(objective, rise=0.04, draws=200)
        >>> found.low < 0.1 < found.high
        True
    """
    require_noise(rise, draws, rel)
    with objective.evaluating():
        noise = Noise(objective, draws, seed, relative=True)
        return noise_radius(noise, rise, rel, None if known is None else _seen(known, noise))


def noise_curve(
    objective: Objective, sigmas: Sequence[float] = SIGMAS, *, draws: int = 32, seed: int = 0
) -> NoiseCurve:
    r"""Measure the mean rise of the loss under relative noise of several sizes, with the same draws at each.

    Args:
        objective: The loss.
        sigmas: Noise levels: standard deviations of the relative noise on every parameter, above 0.
        draws: Number of random z, at least 16.
        seed: Seed of the draws.

    Returns:
        The mean rise with its 95 % interval over the draws. Where the loss of a draw is not finite the point is nan.
        Cost: `draws` losses a noise level. The model is not written.

    Raises:
        ProbeError: An argument is out of range, or the loss itself is not finite.

    Source:
        docs/measures/basin.md.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: (model(x) - 2).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):
        ...     round(float(noise_curve(objective, [0.1, 0.2]).mean[1] / noise_curve(objective, [0.1]).mean[0]), 4)
        4.0
    """
    require_noise(1.0, draws, 0.5)
    levels = np.unique(np.asarray(sigmas, dtype=np.float64))
    if not len(levels) or not (np.isfinite(levels).all() and levels[0] > 0):
        raise ProbeError(f"sigmas must be positive and finite, at least 1, got {list(sigmas)}")
    begun = time.perf_counter()
    with objective.evaluating():
        noise = Noise(objective, draws, seed, relative=True)
        rises = noise.rises(levels)
    mean, low, high = (np.full(len(levels), math.nan) for _ in range(3))
    for i in np.flatnonzero(np.isfinite(rises).all(1)):
        found = mean_estimate(rises[i])
        mean[i], low[i], high[i] = found.value, found.low, found.high
    return NoiseCurve(levels, mean, low, high, rises, noise.loss, seed, time.perf_counter() - begun)


def _seen(known: NoiseCurve, noise: Noise) -> dict[float, Array]:
    """Return the rises of a known curve by noise level, if they are of the same draws."""
    if known.rises.shape[1] != noise.draws or known.seed != noise.seed or known.loss != noise.loss:
        raise ProbeError("known must be a noise curve at the same parameters, with the same draws and seed")
    return {float(sigma): row for sigma, row in zip(known.sigmas, known.rises, strict=True)}
