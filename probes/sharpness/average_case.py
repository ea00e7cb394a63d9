"""Average-case sharpness and the low-pass filtered loss: means of the loss over normal noise on every weight."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import numpy as np

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.noise import Noise
from lossscope.probes.sharpness.perturbation import require_resolved, require_size, rms, scale_of
from lossscope.probes.sharpness.step_quality import rounding
from lossscope.probes.statistics.estimate import Estimate, mean_estimate, rounded_estimate

__all__ = ["average_sharpness", "low_pass_loss"]

_LEAST: Final = 16  # pairs of draws for an interval


def average_sharpness(
    objective: Objective, *, rho: float = 0.1, relative: bool = True, draws: int = 32, seed: int = 0
) -> Estimate:
    r"""Estimate the mean rise of the loss under normal noise on every weight.

    .. math:: E_z L(\theta + \rho \, \theta \odot z) - L(\theta), \qquad z \sim N(0, I)

    Each draw is a pair z and -z, in whose mean the gradient cancels; so the interval stays narrow away from a minimum
    too. For small noise it is :math:`\rho^2 / 2` times the adaptive trace. Under any diagonal map of the parameters
    that preserves the function it is the same number with the same seed, up to rounding.

    Args:
        objective: The loss.
        rho: Standard deviation of the noise on each weight, in units of the weight, above 0.
        relative: False for noise of one size on all weights, :math:`\rho z`.
        draws: Number of pairs, at least 16.
        seed: Seed of the draws.

    Returns:
        The mean rise, nats, with its 95 % interval over all noise, which contains the rounding of the losses. It may be
        negative. Cost: two losses a draw. The model is not written.

    Raises:
        ProbeError: An argument is out of range, the loss of a draw is not finite, the parameters' dtype is too coarse
            for the noise, or all weights are zero.

    Source:
        M. Andriushchenko et al. (2023), A modern look at the relationship between sharpness and generalization,
        arXiv:2302.07011.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: (model(x) - 2).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):
        ...     found = average_sharpness(objective, rho=0.5, draws=200)
        >>> found.low < 1.0 < found.high
        True
    """
    return _mean_rise(objective, "rho", rho, draws, seed, relative=relative)[0]


def low_pass_loss(objective: Objective, *, sigma: float = 0.01, draws: int = 32, seed: int = 0) -> Estimate:
    r"""Estimate the loss after a low-pass filter: its mean under normal noise of one size on all weights.

    .. math:: E_z L(\theta + \sigma z), \qquad z \sim N(0, I)

    It is the loss convolved with a normal density. For small noise it is :math:`L + \sigma^2 \mathrm{tr} H / 2`. It is
    not invariant under a rescaling of weights; `average_sharpness` is. Each draw is a pair z and -z.

    Args:
        objective: The loss.
        sigma: Standard deviation of the noise, in the unit of the weights, above 0.
        draws: Number of pairs, at least 16.
        seed: Seed of the draws.

    Returns:
        The filtered loss, nats, with its 95 % interval over all noise, which contains the rounding of the losses.
        Cost: two losses a draw. The model is not written.

    Raises:
        ProbeError: An argument is out of range, the loss of a draw is not finite, or the parameters' dtype is too
            coarse for the noise.

    Source:
        D. Bisla et al. (2022), Low-pass filtering SGD for recovering flat optima in the deep learning optimization
        landscape, arXiv:2201.08025.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):
        ...     found = low_pass_loss(objective, sigma=1.0, draws=200)
        >>> found.low < 5.0 < found.high
        True
    """
    rise, loss = _mean_rise(objective, "sigma", sigma, draws, seed, relative=False)
    return replace(rise, value=loss + rise.value, low=loss + rise.low, high=loss + rise.high)


def _mean_rise(
    objective: Objective, name: str, size: float, draws: int, seed: int, *, relative: bool
) -> tuple[Estimate, float]:
    """Return the mean rise of the loss over pairs of draws, and the loss."""
    require_size(name, size)
    if draws < _LEAST:
        raise ProbeError(f"draws must be at least {_LEAST} for an interval, got {draws}")
    begun = time.perf_counter()
    theta = objective.parameters()
    scale_of(theta, relative=relative)
    require_resolved(name, size, 1.0 if relative else rms(theta), objective.vector.unit)
    with objective.evaluating():
        noise = Noise(objective, draws, seed, relative=relative)
        both = noise.rises(np.array([size, -size]))
    if missing := int((~np.isfinite(both)).sum()):
        raise ProbeError(
            f"the loss is not finite at {missing} of {both.size} draws of noise of {name}={size:g}, so that it has no "
            f"mean: use a smaller {name}"
        )
    found = mean_estimate(both.mean(0))
    error = rounding(objective, noise.loss, noise.loss + float(np.abs(both).max()))
    known = rounded_estimate(found.value, error)
    return replace(
        found,
        low=found.low - error,
        high=found.high + error,
        seconds=time.perf_counter() - begun,
        converged=known.converged,
        cause=known.cause,
    ), noise.loss
