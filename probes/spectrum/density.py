"""The spectral density of an operator as quadrature nodes and weights, and the numbers that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from scipy.special import stdtrit

from lossscope.probes.errors import ProbeError
from lossscope.probes.spectrum.block_krylov import Array
from lossscope.probes.spectrum.ritz import Ritz
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["SpectralDensity", "spectral_density"]

_ISOLATED: Final = 4.0  # residuals that fit into the known gap around a Ritz value that has settled
_AGREE: Final = 1e-2  # relative change by half of the steps that is none
_HEAVY: Final = 12.0  # a settled pair that weighs more than so many eigenvalues may stand for several: it stays sampled
_DEAD_ZONE: Final = 1e-3  # of the largest absolute value: eigenvalues within it have no sign


@dataclass(frozen=True)
class SpectralDensity:
    r"""Nodes and weights of the spectral measure :math:`\frac1n \sum_i \delta(\lambda - \lambda_i)`.

    Row i of `weights` is the quadrature of the random unit vector :math:`x_i`: after m block steps
    :math:`\sum_j w_{ij} \theta_j^k = x_i^\top A^k x_i` for :math:`k \le 2m - 1`, and the mean over :math:`x_i` is
    the moment of the measure. Ritz values that have settled are eigenvalues: in `shares`, and in all that is
    derived here, each of them counts 1/n exactly, and chance plays a part in the rest only.

    **Errors.** For directions uniform on the sphere, the mean over b of them of
    :math:`m\, x^\top f(A) x`, over an m-dimensional rest, has the variance
    :math:`\frac2b \big(\sum f^2 - (\sum f)^2/m\big)`; both sums are estimated from the same quadrature, which gives
    an error bar even from one vector. Intervals are t-intervals with :math:`b (\sum f^2)^2/\sum f^4`
    degrees of freedom, widened by the change since half of the steps were done; where that change
    exceeds the interval the number has not converged.

    Source:
        G. Golub, G. Meurant (2010), Matrices, Moments and Quadrature; S. Ubaru, J. Chen, Y. Saad (2017), Fast
        estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl. 38(4).
    """

    nodes: Array  # (k,) float64, ascending
    weights: Array  # (b, k) float64, each row sums to 1
    settled: Array  # (k,) bool
    size: int  # n
    noise: float  # a Ritz value near zero is known to this much
    lowest: float  # no eigenvalue lies below it, at 95 % confidence
    half: SpectralDensity | None = None  # what half of the steps gave

    @cached_property
    def shares(self) -> Array:
        """`(k,)`: the best estimate of each node's share of the spectrum; they sum to 1."""
        rest = np.where(self.settled, 0.0, self.weights.mean(0))
        total, left = rest.sum(), 1.0 - self.settled.sum() / self.size
        return np.where(self.settled, 1.0 / self.size, rest * (left / total if total > 0 else 0.0))

    @property
    def converged(self) -> bool:
        """Whether its numbers have: negative mass, effective rank and participation ratio, as far as there are any."""
        numbers = (self.negative_mass, self.effective_rank, self.participation_ratio)
        return all(one.converged or math.isnan(one.value) for one in numbers)

    def curve(self, grid: Array, width: float) -> tuple[Array, Array, Array]:
        """The density smoothed by Gaussians, with a pointwise 95 % band.

        Args:
            grid: `(m,)`, where to evaluate it.
            width: Standard deviation of the Gaussians.

        Returns:
            Mean, low and high, each `(m,)`, per unit of the eigenvalue; the mean integrates to 1.
        """
        if not width > 0:
            raise ProbeError(f"width={width:g} smooths nothing, need a positive number such as 1 % of lambda_max")
        bumps = np.exp(-(((grid[:, None] - self.nodes) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
        mean = bumps @ self.shares
        reach = np.array([self._reach(bump / self.size) for bump in bumps])
        return mean, np.maximum(mean - reach, 0.0), mean + reach

    @property
    def negative_mass(self) -> Estimate:
        r"""The share of negative eigenvalues in :math:`\sum|\lambda|`, those within 0.1 % of the largest left out.

        Where none has been seen but some are not ruled out, `high` is what n of them at the lowest possible place
        would make up, and the number has not converged.
        """
        found = self._estimate(lambda d: d._ratio(d._negative(), np.abs(d.nodes)), 0.0, 1.0)
        if found.value > 0 or self.settled.all() or self.lowest >= -self._dead:  # not what is lost in noise so far
            return found
        total = self.size * float(self.shares @ np.abs(self.nodes))
        return replace(found, high=min(1.0, max(found.high, -self.lowest * self.size / total)), converged=False)

    @property
    def participation_ratio(self) -> Estimate:
        r"""The number of eigenvalues that matter: :math:`(\sum\lambda^+)^2/\sum(\lambda^+)^2`."""
        return self._estimate(SpectralDensity._participation, 1.0, self.size)

    @property
    def effective_rank(self) -> Estimate:
        r""":math:`\exp(-\sum p \ln p)` with :math:`p = \lambda^+/\sum\lambda^+` (Roy and Vetterli 2007)."""
        return self._estimate(SpectralDensity._entropy_rank, 1.0, self.size)

    def effective_parameters(self, alpha: float) -> Estimate:
        r"""MacKay's :math:`\sum_i \lambda_i^+/(\lambda_i^+ + \alpha)`.

        Args:
            alpha: The prior precision in units of the eigenvalues of the mean loss: `weight decay` there.

        Returns:
            The number of parameters that the data determine.
        """
        if not alpha > 0:
            raise ProbeError(f"alpha={alpha:g} is out of range, need a positive prior precision")
        return self._estimate(lambda d: d._sum(_positive(d.nodes) / (_positive(d.nodes) + alpha)), 0.0, self.size)

    def condition(self, quantile: float = 0.5) -> Estimate:
        r"""The largest eigenvalue over a quantile of the absolute eigenvalues.

        Args:
            quantile: Which, between 0 and 1.

        Returns:
            The ratio. Its interval holds the quantiles at which the distribution, less or plus its own error and one
            node of the quadrature, reaches `quantile`; a gap where that quantile is zero up to rounding, and
            for `high` where nothing is known from above.
        """
        if not 0 < quantile < 1:
            raise ProbeError(f"quantile={quantile:g} is out of range, need 0 < quantile < 1")
        order = np.argsort(np.abs(self.nodes))
        sizes, up_to = np.abs(self.nodes)[order], np.cumsum(self.shares[order])
        at = min(int(np.searchsorted(up_to, quantile)), len(sizes) - 1)
        below = np.zeros(len(sizes))
        below[order[: at + 1]] = 1.0
        reach = self._reach(below / self.size)
        places = np.searchsorted(up_to, [quantile, quantile - reach, quantile + reach])
        if not self.settled.all():  # between two nodes the distribution is known up to the weight of one
            places += [0, -1, 1]
        value, high, low = (self._over(sizes, int(place)) for place in places)
        if self.nodes[-1] < 0:  # of a negative definite matrix the larger size is the larger ratio
            low, high = high, low
        if math.isnan(value):
            return exact_estimate(math.nan)
        agrees = self.half is None or low <= self.half.condition(quantile).value <= high
        return Estimate(value, math.nan, low, high, len(self.weights), "standard error", converged=agrees)

    def _over(self, sizes: Array, place: int) -> float:
        """The largest eigenvalue over one of the sizes; a gap where that is rounding, or below all of them."""
        size = float(sizes[min(place, len(sizes) - 1)]) if place >= 0 else 0.0
        return float(self.nodes[-1] / size) if size > self.noise else math.nan

    def _sum(self, f: Array) -> tuple[float, Array]:
        """The sum of f over the spectrum, and by how much each node's eigenvalues move it."""
        return self.size * float(self.shares @ f), f

    def _ratio(self, f: Array, g: Array) -> tuple[float, Array]:
        """The ratio of two sums, and its derivative by the mass at each node."""
        (top, _), (bottom, _) = self._sum(f), self._sum(g)
        if not bottom > 0:
            return math.nan, np.zeros(len(f))
        return top / bottom, (f - top / bottom * g) / bottom

    def _negative(self) -> Array:
        """The sizes of the nodes that are negative beyond the dead zone."""
        return np.where(self.nodes < -self._zone, -self.nodes, 0.0)

    @property
    def _zone(self) -> float:
        """Eigenvalues within it have no sign."""
        return max(self._dead, 3 * self.noise)

    @property
    def _dead(self) -> float:
        """The same once Ritz values are sharp."""
        return _DEAD_ZONE * float(np.abs(self.nodes).max())

    def _participation(self) -> tuple[float, Array]:
        plus = _positive(self.nodes)
        (first, _), (second, _) = self._sum(plus), self._sum(plus**2)
        if not first > 0:
            return math.nan, plus
        value = first**2 / second
        return value, value * (2 * plus / first - plus**2 / second)

    def _entropy_rank(self) -> tuple[float, Array]:
        plus = _positive(self.nodes)
        logs = plus * np.log(np.where(plus > 0, plus, 1.0))
        (first, _), (second, _) = self._sum(plus), self._sum(logs)
        if not first > 0:
            return math.nan, plus
        value = math.exp(math.log(first) - second / first)
        return value, value * (plus / first - logs / first + second * plus / first**2)

    def _estimate(
        self, number: Callable[[SpectralDensity], tuple[float, Array]], least: float, most: float
    ) -> Estimate:
        """A number that follows from the spectrum, with what sampling and the number of steps leave open of its range.

        The reach is judged before it is clipped: an interval that the range makes short says nothing of convergence.
        """
        value, slope = number(self)

        def possible(found: float) -> float:
            return min(max(found, least), most)

        if math.isnan(value):
            return exact_estimate(math.nan)
        if self.settled.all():
            return exact_estimate(possible(value))
        stderr, reach = self._error(slope), self._reach(slope)
        moved = abs(value - number(self.half)[0]) if self.half is not None else math.inf
        agrees = moved <= max(reach, _AGREE * abs(value))
        reach += moved if math.isfinite(moved) else 0.0
        low, high = possible(value - reach), possible(value + reach)
        return Estimate(possible(value), stderr, low, high, len(self.weights), "standard error", converged=bool(agrees))

    def _error(self, slope: Array) -> float:
        """The standard error of a sum over the spectrum with this slope."""
        rest = ~self.settled
        number = self.size - int(self.settled.sum())
        if not rest.any() or number < 2:
            return 0.0
        mass = self.size * np.where(rest, self.shares, 0.0)
        square, total = float(mass @ slope**2), float(mass @ slope)
        return math.sqrt(max(2 * (square - total**2 / number), 0.0) / len(self.weights))

    def _reach(self, slope: Array) -> float:
        """Half the width of the 95 % interval of such a sum."""
        mass = self.size * np.where(self.settled, 0.0, self.shares)
        square, fourth = float(mass @ slope**2), float(mass @ slope**4)
        freedom = len(self.weights) * square**2 / fourth if fourth > 0 else 1.0
        return self._error(slope) * float(stdtrit(max(1.0, freedom), 0.975))


def spectral_density(now: Ritz, before: Ritz | None, size: int) -> SpectralDensity:
    """The density that the random start of a Krylov space has seen.

    Args:
        now: All Ritz pairs.
        before: Those after half of the steps, to see what the other half has changed.
        size: `n`.

    Returns:
        The density.
    """
    lowest = float(now.values[0]) - now.reach(largest=False)
    found = SpectralDensity(now.values, now.weights, _settled(now, size), size, float(now.residuals.min()), lowest)
    half = None if before is None else spectral_density(before, None, size)
    return replace(found, half=half)


def _settled(pairs: Ritz, size: int) -> Array:
    """Which Ritz values are single eigenvalues."""
    if len(pairs.values) == size:
        return np.ones(size, dtype=bool)
    light: Array = size * pairs.weights.mean(0) <= _HEAVY
    return light & (_ISOLATED * pairs.residuals <= pairs.gaps)


def _positive(values: Array) -> Array:
    return np.maximum(values, 0.0)
