"""Spectral density of an operator as quadrature nodes and weights, and quantities derived from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from scipy.special import stdtrit

from lossscope.probes.eigenvalues.block_krylov import Array
from lossscope.probes.eigenvalues.ritz import Ritz
from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["SpectralDensity", "are_single", "spectral_density"]

_ISOLATED: Final = 4.0  # gap of a settled Ritz value, in units of its residual
_AGREE: Final = 1e-2  # relative change over the second half of the steps that counts as converged
_HEAVY: Final = 12.0  # a node with more than this weight, in eigenvalues, may be several of them and stays sampled
_DEAD_ZONE: Final = 1e-3  # relative to the largest absolute value: eigenvalues within it count as zero


@dataclass(frozen=True)
class SpectralDensity:
    r"""Nodes and weights of the spectral measure :math:`\frac1n \sum_i \delta(\lambda - \lambda_i)`.

    Row i of `weights` is the quadrature of the random unit vector :math:`x_i`: after m block steps
    :math:`\sum_j w_{ij} \theta_j^k = x_i^\top A^k x_i` for :math:`k \le 2m - 1`, and the mean over :math:`x_i` is
    the moment of the measure. A settled Ritz value has converged to a single eigenvalue: in `shares`, and in all
    derived quantities, it counts 1/n exactly, and only the rest is sampled.

    **Errors.** For directions uniform on the sphere, the mean over b of them of
    :math:`m\, x^\top f(A) x`, over an m-dimensional rest, has the variance
    :math:`\frac2b \big(\sum f^2 - (\sum f)^2/m\big)`; both sums are estimated from the same quadrature, which gives
    an error bar even from one vector. Intervals are t-intervals with :math:`b (\sum f^2)^2/\sum f^4`
    degrees of freedom, widened by the change over the second half of the steps. A quantity has converged if neither
    its own change nor those of negative mass, effective rank and participation ratio exceed their intervals.

    Source:
        G. Golub, G. Meurant (2010), Matrices, Moments and Quadrature; S. Ubaru, J. Chen, Y. Saad (2017), Fast
        estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl. 38(4).
    """

    nodes: Array  # (k,) float64, ascending
    weights: Array  # (b, k) float64, each row sums to 1
    settled: Array  # (k,) bool
    size: int  # n
    noise: float  # accuracy of a Ritz value near zero
    lowest: float  # lower bound of all eigenvalues, at 95 % confidence
    half: SpectralDensity | None = None  # the density after half of the steps
    separate: bool = False  # True if each random vector has nodes of its own, which are few

    @cached_property
    def shares(self) -> Array:
        """`(k,)`: estimated share of each node in the spectrum; they sum to 1."""
        rest = np.where(self.settled, 0.0, self.weights.mean(0))
        total, left = rest.sum(), 1.0 - self.settled.sum() / self.size
        return np.where(self.settled, 1.0 / self.size, rest * (left / total if total > 0 else 0.0))

    @cached_property
    def converged(self) -> bool:
        """True if negative mass, effective rank and participation ratio all agree with those after half of the steps.

        One of them alone may agree by chance while the density still changes, and its interval then covers too seldom;
        so a derived quantity has converged only if all three have, as far as they are defined.
        """
        numbers = (self._negative_mass, self._effective_rank, self._participation_ratio)
        return all(one.converged or math.isnan(one.value) for one in numbers)

    def curve(self, grid: Array, width: float) -> tuple[Array, Array, Array]:
        """Return the density smoothed by Gaussians, with a pointwise 95 % band.

        Args:
            grid: `(m,)`, points at which it is evaluated.
            width: Standard deviation of the Gaussians.

        Returns:
            Mean, low and high, each `(m,)`, per unit of the eigenvalue; the mean integrates to 1.
        """
        if not width > 0:
            raise ProbeError(f"width must be positive, such as 1 % of lambda_max, got {width:g}")
        bumps = np.exp(-(((grid[:, None] - self.nodes) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
        mean = bumps @ self.shares
        reach = np.array([self._reach(bump / self.size) for bump in bumps])
        return mean, np.maximum(mean - reach, 0.0), mean + reach

    @property
    def negative_mass(self) -> Estimate:
        r"""Share of negative eigenvalues in :math:`\sum|\lambda|`, excluding those within 0.1 % of the largest.

        If none was found but some are not excluded, `high` is the share of n of them at the lowest possible value, and
        the quantity has not converged.
        """
        return self._jointly(self._negative_mass)

    @property
    def participation_ratio(self) -> Estimate:
        r"""Participation ratio of the positive eigenvalues: :math:`(\sum\lambda^+)^2/\sum(\lambda^+)^2`."""
        return self._jointly(self._participation_ratio)

    @property
    def effective_rank(self) -> Estimate:
        r"""Effective rank :math:`\exp(-\sum p \ln p)`, :math:`p = \lambda^+/\sum\lambda^+` (Roy and Vetterli 2007)."""
        return self._jointly(self._effective_rank)

    def effective_parameters(self, alpha: float) -> Estimate:
        r"""Return MacKay's effective number of parameters :math:`\sum_i \lambda_i^+/(\lambda_i^+ + \alpha)`.

        Args:
            alpha: Prior precision in units of the eigenvalues of the mean loss, where it is the weight decay.

        Returns:
            The number of parameters that the data determine.
        """
        if not alpha > 0:
            raise ProbeError(f"alpha must be a positive prior precision, got {alpha:g}")
        return self._jointly(
            self._estimate(lambda d: d._sum(_positive(d.nodes) / (_positive(d.nodes) + alpha)), 0.0, self.size)
        )

    @cached_property
    def _negative_mass(self) -> Estimate:
        """Negative mass, with its own convergence."""
        found = self._estimate(lambda d: d._ratio(d._negative(), np.abs(d.nodes)), 0.0, 1.0)
        if self.separate and not math.isnan(found.value):
            jump = self._jump()
            found = replace(found, low=max(found.low - jump, 0.0), high=min(found.high + jump, 1.0))
        # compare with the dead zone alone: eigenvalues within the noise may turn out to be negative
        if found.value > 0 or self.settled.all() or self.lowest >= -self._dead:
            return found
        total = self.size * float(self.shares @ np.abs(self.nodes))
        return replace(found, high=min(1.0, max(found.high, -self.lowest * self.size / total)), converged=False)

    @cached_property
    def _participation_ratio(self) -> Estimate:
        """Participation ratio, with its own convergence."""
        return self._estimate(SpectralDensity._participation, 1.0, self.size)

    @cached_property
    def _effective_rank(self) -> Estimate:
        """Effective rank, with its own convergence."""
        return self._estimate(SpectralDensity._entropy_rank, 1.0, self.size)

    def _jointly(self, found: Estimate) -> Estimate:
        """Return an estimate that has converged only if the density has."""
        return replace(found, converged=found.converged and self.converged)

    def condition(self, quantile: float = 0.5) -> Estimate:
        r"""Return the ratio of the largest eigenvalue to a quantile of the absolute eigenvalues.

        Args:
            quantile: Level of the quantile, between 0 and 1.

        Returns:
            The ratio. Its interval is given by the points at which the distribution, minus or plus its own error and
            one node of the quadrature for each vector of the block, reaches `quantile`. It is nan if that quantile is
            zero up to rounding, and `high` is nan if there is no upper bound.
        """
        if not 0 < quantile < 1:
            raise ProbeError(f"quantile must be between 0 and 1, got {quantile:g}")
        order = np.argsort(np.abs(self.nodes))
        sizes, up_to = np.abs(self.nodes)[order], np.cumsum(self.shares[order])
        at = min(int(np.searchsorted(up_to, quantile)), len(sizes) - 1)
        below = np.zeros(len(sizes))
        below[order[: at + 1]] = 1.0
        reach = self._reach(below / self.size)
        places = np.searchsorted(up_to, [quantile, quantile - reach, quantile + reach])
        if not self.settled.all():  # the distribution is known to the weight of one node of each vector
            places += len(self.weights) * np.array([0, -1, 1])
        value, high, low = (self._over(sizes, int(place)) for place in places)
        if self.nodes[-1] < 0:  # for a negative definite matrix the ratio grows with the size
            low, high = high, low
        if math.isnan(value):
            return exact_estimate(math.nan)
        agrees = self.half is None or low <= self.half.condition(quantile).value <= high
        found = Estimate(value, math.nan, low, high, len(self.weights), "standard error", converged=agrees)
        return self._jointly(found)

    def _over(self, sizes: Array, place: int) -> float:
        """Return the largest eigenvalue over one of the sizes; nan if that is rounding, or there is none."""
        size = float(sizes[min(place, len(sizes) - 1)]) if place >= 0 else 0.0
        return float(self.nodes[-1] / size) if size > self.noise else math.nan

    def _sum(self, f: Array) -> tuple[float, Array]:
        """Return the sum of f over the spectrum and its derivative by the mass at each node."""
        return self.size * float(self.shares @ f), f

    def _ratio(self, f: Array, g: Array) -> tuple[float, Array]:
        """Return the ratio of two sums and its derivative by the mass at each node."""
        (top, _), (bottom, _) = self._sum(f), self._sum(g)
        if not bottom > 0:
            return math.nan, np.zeros(len(f))
        return top / bottom, (f - top / bottom * g) / bottom

    def _negative(self) -> Array:
        """Return the absolute values of the nodes below the dead zone, 0 for the others."""
        return np.where(self.nodes < -self._zone, -self.nodes, 0.0)

    def _jump(self) -> float:
        """Return the change of the negative mass if the nodes at the edge of the dead zone moved across it."""
        edges = []
        for row in self.weights:
            own = np.flatnonzero((row > 0) & ~self.settled)
            near = own[np.argsort(np.abs(self.nodes[own] + self._zone), kind="stable")[:2]]
            edges.append(float(row[near].max(initial=0.0)))
        return self._zone * float(np.mean(edges)) / float(self.shares @ np.abs(self.nodes))

    @property
    def _zone(self) -> float:
        """Half-width of the dead zone: eigenvalues within it count as zero."""
        return max(self._dead, 3 * self.noise)

    @property
    def _dead(self) -> float:
        """Half-width of the dead zone for exact Ritz values."""
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
        """Estimate a derived quantity with an interval for sampling and truncation, clipped to its range.

        Convergence is decided before clipping, as a short clipped interval does not imply it.
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
        """Return the standard error of a quantity with this derivative by the mass at each node."""
        rest = ~self.settled
        number = self.size - int(self.settled.sum())
        if not rest.any() or number < 2:
            return 0.0
        mass = self.size * np.where(rest, self.shares, 0.0)
        square, total = float(mass @ slope**2), float(mass @ slope)
        return math.sqrt(max(2 * (square - total**2 / number), 0.0) / len(self.weights))

    def _reach(self, slope: Array) -> float:
        """Return half the width of the 95 % interval of such a quantity."""
        mass = self.size * np.where(self.settled, 0.0, self.shares)
        square, fourth = float(mass @ slope**2), float(mass @ slope**4)
        freedom = len(self.weights) * square**2 / fourth if fourth > 0 else 1.0
        return self._error(slope) * float(stdtrit(max(1.0, freedom), 0.975))


def spectral_density(now: Ritz, before: Ritz | None, size: int) -> SpectralDensity:
    """Return the spectral density estimated from the random start of a Krylov space.

    Args:
        now: All Ritz pairs.
        before: The pairs after half of the steps, to measure the change over the other half; None if there are none.
        size: `n`.

    Returns:
        The density.
    """
    lowest = float(now.values[0]) - now.reach(largest=False)
    found = SpectralDensity(now.values, now.weights, _settled(now, size), size, float(now.residuals.min()), lowest)
    half = None if before is None else spectral_density(before, None, size)
    return replace(found, half=half)


def _settled(pairs: Ritz, size: int) -> Array:
    """Return a mask, True for Ritz values that have converged to single eigenvalues."""
    if len(pairs.values) == size:
        return np.ones(size, dtype=bool)
    return are_single(size * pairs.weights.mean(0), pairs.residuals, pairs.gaps)


def are_single(weights: Array, residuals: Array, gaps: Array) -> Array:
    """Return a mask, True for nodes that have converged to single eigenvalues.

    Args:
        weights: Weights of the nodes, in eigenvalues.
        residuals: Residuals of their vectors.
        gaps: Distances to the nearest other interval in which an eigenvalue may lie.
    """
    found: Array = (weights <= _HEAVY) & (_ISOLATED * residuals <= gaps)
    return found


def _positive(values: Array) -> Array:
    return np.maximum(values, 0.0)
