"""Basin radius and noise curve: the mean rise of the loss under random relative noise on every parameter."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.step_quality import rounding
from lossscope.probes.statistics.crossing import Curves, crossing_interval
from lossscope.probes.statistics.estimate import Estimate, mean_estimate

__all__ = ["SIGMAS", "NoiseCurve", "basin_radius", "noise_curve"]

Array: TypeAlias = NDArray[np.float64]

SIGMAS: Final = tuple(float(10 ** (i / 4 - 2)) for i in range(9))  # 0.01 to 1, four a decade
_RANGE: Final = (1e-4, 10.0)  # of the radius
_START: Final = 0.1
_STRIDE: Final = (2.0, 10.0)  # least and largest factor between two noise levels of the search
_INSIDE: Final = 0.1  # share of a bracket, at either end, in which no noise level is tried
_REACH: Final = 3.0  # standard errors on both sides of the radius that the interval needs
_MOST: Final = 60  # noise levels of one search; halving the whole range to rounding takes as many


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
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: (model(x) - 2).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):
        ...     found = basin_radius(objective, rise=0.04, draws=200)
        >>> found.low < 0.1 < found.high
        True
    """
    _check(rise, draws, rel)
    begun = time.perf_counter()
    with objective.evaluating():
        noise = _Noise(objective, draws, seed)
        slack = rounding(objective, noise.loss, noise.loss + rise)
        if slack > rel * rise:
            raise ProbeError(
                f"the rise must be large beside the rounding of the loss, got {rise:g} at a loss of {noise.loss:g} "
                f"with a rounding of {slack:.2g}: convert the model to float32, or use objective.in_double()"
            )
        search = _Search(noise, rise, rel, known)
        at = search.crossing()
        low, high, stderr = crossing_interval(search.curves(), rise, at, seed=seed)
        if search.widened(at, stderr):
            low, high, stderr = crossing_interval(search.curves(), rise, at, seed=seed)
    met = math.isfinite(low) and math.isfinite(high)
    return Estimate(
        at,
        stderr,
        low,
        high,
        draws,
        "standard error",
        seconds=time.perf_counter() - begun,
        converged=met,
        cause="" if met else "the draws differ too much for an interval, or the loss is not finite close to the radius",
    )


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
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: (model(x) - 2).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):
        ...     round(float(noise_curve(objective, [0.1, 0.2]).mean[1] / noise_curve(objective, [0.1]).mean[0]), 4)
        4.0
    """
    _check(1.0, draws, 0.5)
    levels = np.unique(np.asarray(sigmas, dtype=np.float64))
    if not len(levels) or not (np.isfinite(levels).all() and levels[0] > 0):
        raise ProbeError(f"sigmas must be positive and finite, at least 1, got {list(sigmas)}")
    begun = time.perf_counter()
    with objective.evaluating():
        noise = _Noise(objective, draws, seed)
        rises = noise.rises(levels)
    mean, low, high = (np.full(len(levels), math.nan) for _ in range(3))
    for i in np.flatnonzero(np.isfinite(rises).all(1)):
        found = mean_estimate(rises[i])
        mean[i], low[i], high[i] = found.value, found.low, found.high
    return NoiseCurve(levels, mean, low, high, rises, noise.loss, seed, time.perf_counter() - begun)


def _check(rise: float, draws: int, rel: float) -> None:
    """Reject arguments out of range."""
    if not 0 < rise < math.inf:
        raise ProbeError(f"rise must be positive and finite, got {rise:g}")
    if draws < 16:
        raise ProbeError(f"draws must be at least 16 for an interval, got {draws}")
    if not 0 < rel < 1:
        raise ProbeError(f"rel must be above 0 and below 1, got {rel:g}")


class _Noise:
    """Rise of the loss at draws of relative noise; make it inside `evaluating`."""

    def __init__(self, objective: Objective, draws: int, seed: int) -> None:
        self.objective, self.draws, self.seed = objective, draws, seed
        self.loss = objective.value()
        self._theta = objective.parameters()

    def rises(self, sigmas: Array) -> Array:
        """Return the rise of each draw at each noise level, `(k, draws)`; each z is drawn once."""
        generator = torch.Generator().manual_seed(self.seed)
        found = np.empty((len(sigmas), self.draws))
        for draw in range(self.draws):
            step = self._step(generator)
            for i, sigma in enumerate(sigmas):
                found[i, draw] = self.objective.value_at(torch.add(self._theta, step, alpha=float(sigma))) - self.loss
        return found

    def _step(self, generator: torch.Generator) -> Tensor:
        """Return theta times the next z, which is drawn on the CPU so that all devices get the same."""
        z = torch.randn(self.objective.size, generator=generator, dtype=torch.float32)
        return z.to(self._theta).mul_(self._theta)


class _Search:
    """Search of the noise level at which the mean rise crosses a value; keeps all rises that it has seen."""

    def __init__(self, noise: _Noise, rise: float, rel: float, known: NoiseCurve | None) -> None:
        self._noise, self._rise, self._rel = noise, rise, rel
        self._seen: dict[float, Array] = {}
        if known is not None:
            if known.rises.shape[1] != noise.draws or known.seed != noise.seed or known.loss != noise.loss:
                raise ProbeError("known must be a noise curve at the same parameters, with the same draws and seed")
            self._seen = {float(sigma): row for sigma, row in zip(known.sigmas, known.rises, strict=True)}

    def curves(self) -> Curves:
        """Return the finite rises seen, by noise level."""
        levels = sorted(sigma for sigma, row in self._seen.items() if np.isfinite(row).all())
        return Curves(np.log(levels), np.stack([self._seen[sigma] for sigma in levels]))

    def crossing(self) -> float:
        """Return the noise level of the crossing."""
        below, above = self._bracket()
        for _ in range(_MOST):
            if math.log(above / below) <= self._rel:
                break
            middle = self._between(below, above)
            found = self._mean(middle)
            if abs(found / self._rise - 1) <= self._rel:
                return self._near(middle, found, below, above)
            below, above = (middle, above) if found < self._rise else (below, middle)
        if not math.isfinite(self._mean(above)):
            raise ProbeError(
                f"the loss is not finite from relative noise of {above:.3g} on, where it has risen by "
                f"{self._mean(below):.3g} at most: it does not rise by {self._rise:g} before"
            )
        return self._between(below, above, safe=False)

    def widened(self, at: float, stderr: float) -> bool:
        """See the rises further out if those seen end within some standard errors; return True if there are more."""
        reach = math.exp(_REACH * (stderr / at if math.isfinite(stderr) else 0.5 / _REACH))
        wanted = [at / reach] if min(self._seen) > at / reach else []
        wanted += [at * reach] if max(self._seen) < at * reach else []
        for sigma in wanted:
            self._mean(sigma)
        return bool(wanted)

    def _near(self, middle: float, found: float, below: float, above: float) -> float:
        """Return the crossing by one more interpolation from a noise level that is close to it."""
        ends = (middle, above) if found < self._rise else (below, middle)
        return self._between(*ends, safe=False)

    def _mean(self, sigma: float) -> float:
        """Return the mean rise; infinite if the loss of a draw is not finite, as it has left every basin."""
        if sigma not in self._seen:
            self._seen[sigma] = self._noise.rises(np.array([sigma]))[0]
        row = self._seen[sigma]
        return float(row.mean()) if np.isfinite(row).all() else math.inf

    def _bracket(self) -> tuple[float, float]:
        """Return two noise levels, the mean rise below the wanted one at the first, and not at the second."""
        low, high = self._known_bracket()
        sigma = high or low or _START
        while low is None or high is None:
            found = self._mean(sigma)
            if found < self._rise:
                low = sigma
                if high is None and sigma >= _RANGE[1]:
                    most = max(map(self._mean, self._seen))
                    raise ProbeError(
                        f"the loss rises by at most {most:.3g} at the {len(self._seen)} noise levels tried up to "
                        f"{sigma:g}, less than {self._rise:g}: no radius up to {sigma:g}"
                    )
            else:
                high = sigma
                if low is None and sigma <= _RANGE[0]:
                    raise ProbeError(
                        f"the loss rises by {found:.3g} at relative noise of {sigma:g} already, more than "
                        f"{self._rise:g}: no radius down to 0.0001"
                    )
            sigma = min(max(sigma * self._stride(found), _RANGE[0]), _RANGE[1])
        return low, high

    def _known_bracket(self) -> tuple[float | None, float | None]:
        """Return the first noise level of a known curve at which the rise is reached, and the one before it."""
        low = None
        for sigma in sorted(self._seen):
            if self._mean(sigma) >= self._rise:
                return low, sigma
            low = sigma
        return low, None

    def _stride(self, found: float) -> float:
        """Return the factor to the next noise level: that of a quadratic rise, within limits."""
        share = found / self._rise
        if not 0 < share < math.inf:
            return _STRIDE[0] if share <= 0 else 1 / _STRIDE[0]
        factor = 1 / math.sqrt(share)
        if factor > 1:
            return min(max(1.1 * factor, _STRIDE[0]), _STRIDE[1])
        return max(min(factor / 1.1, 1 / _STRIDE[0]), 1 / _STRIDE[1])

    def _between(self, below: float, above: float, *, safe: bool = True) -> float:
        """Return the crossing between two noise levels by interpolation, kept off both ends if `safe`."""
        low, high = self._mean(below), self._mean(above)
        width = math.log(above / below)
        if not math.isfinite(high):
            return below * math.exp(width / 2)
        powers = low > 0
        share = math.log(self._rise / low) / math.log(high / low) if powers else (self._rise - low) / (high - low)
        if safe:
            share = min(max(share, _INSIDE), 1 - _INSIDE)
        return below * math.exp(share * width)
