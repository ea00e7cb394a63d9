"""What a Krylov space says of the spectrum: Ritz values, their residuals, and where no eigenvalue can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from scipy.special import gammaincinv

from lossscope.probes.spectrum.block_krylov import Array, BlockKrylov

__all__ = ["Ritz", "ritz"]

_RISK: Final = 0.05  # of an eigenvalue outside its bound
_ROUNDINGS: Final = 100  # one to five units on ordinary networks, about twenty where the softmax is saturated
_LOOKS: Final = 24  # points between two Ritz values, or beyond the last, where an eigenvalue is ruled out or not
_TINY: Final = 1e-120  # where a point is a Ritz value, or near enough
_NEAREST, _FARTHEST = 1e-12, 1e6  # of the largest Ritz value: how far out is looked


@dataclass(frozen=True)
class Ritz:
    r"""The Ritz pairs of a space, ascending, and the bounds that follow from its random start.

    **Where no eigenvalue can be.** Let v be an eigenvector of A with eigenvalue :math:`\lambda`. From
    :math:`AQ = QT + Q_+C` follows :math:`v^\top Q = -v^\top Q_+ C (T - \lambda)^{-1}`, so for the random columns X
    of the start, with coordinates S in the basis,

    .. math:: X^\top v = M(\lambda)^\top Q_+^\top v, \qquad M(\lambda) = -C (T - \lambda)^{-1} S,

    and :math:`|X^\top v| \le \lVert M(\lambda)\rVert`. The left side is the length of a standard normal vector of b
    numbers, whatever A is: it is below :math:`\delta_b`, the root of the 5 % quantile of :math:`\chi^2_b`, in 5 % of
    cases only. So where :math:`\lVert M(\lambda)\rVert_F < \delta_b` an eigenvalue is ruled out at 95 % confidence. As
    a Ritz value never lies outside the spectrum, an end of the spectrum is enclosed between the outermost
    Ritz value and the first point from which on eigenvalues are ruled out.

    Source:
        The case of one vector: J. van Dorsselaer, M. Hochstenbach, H. van der Vorst (2000), Computing
        probabilistic bounds for extreme eigenvalues of symmetric matrices with the Lanczos method, SIAM J.
        Matrix Anal. Appl. 22(3), 837-852. The block form is derived above.
    """

    values: Array  # (k,) ascending
    coefficients: Array  # (k, k), columns in the basis
    residuals: Array  # (k,), |A y - theta y|, with a hundred rounding units of the largest value
    weights: Array  # (b, k), squared coordinates of each normalized random start vector
    scale: float  # largest absolute Ritz value
    rounding: float  # a hundred rounding units of it: what products may be off by
    _outwards: Array  # (p, k), C U
    _start: Array  # (k, b), U'S

    def enclosed(self, distance: float, *, largest: bool) -> bool:
        """Whether an end of the spectrum is less than `distance` beyond its outermost Ritz value, at 95 % confidence.

        Args:
            distance: A length.
            largest: The upper end, or the lower one.

        Returns:
            The answer; `reach` says how far it is.
        """
        if not self._outwards.size:
            return distance >= 0
        edge = self.values[-1] + distance if largest else self.values[0] - distance
        return distance > 0 and self._start.shape[1] > 0 and not self._possible(np.array([edge]))[0]

    def reach(self, *, largest: bool) -> float:
        """How far beyond its outermost Ritz value an end of the spectrum may be, at 95 % confidence.

        Args:
            largest: The upper end, or the lower one.

        Returns:
            A length; infinite where the start had nothing random.
        """
        if not self._outwards.size or not self.scale:
            return 0.0
        if not self._start.shape[1]:
            return math.inf
        edge, sign = (self.values[-1], 1.0) if largest else (self.values[0], -1.0)
        distances, far = self.scale * np.geomspace(_NEAREST, _FARTHEST, _LOOKS), math.inf
        for _ in range(3):  # to about one per cent of itself
            possible = np.append(True, self._possible(edge + sign * distances))
            last = int(np.flatnonzero(possible)[-1])
            if last == len(distances):
                return math.inf
            near, far = (distances[last - 1] if last else 0.0), float(distances[last])
            distances = np.linspace(near, far, _LOOKS + 1)[1:]
        return far

    @cached_property
    def gaps(self) -> Array:
        """`(k,)`: the distance to the nearest other place where an eigenvalue can be; 0 where no gap is known.

        A gap is known where eigenvalues are ruled out at some point on either side.
        """
        theta = self.values
        if len(theta) < 2:
            return np.zeros(len(theta))
        share = (np.arange(_LOOKS) + 0.5) / _LOOKS
        points = theta[:-1, None] + share * np.diff(theta)[:, None]  # (k - 1, looks)
        free = ~self._possible(points.ravel()).reshape(points.shape)
        some = free.any(1)
        last = np.where(some, points[np.arange(len(points)), _LOOKS - 1 - free[:, ::-1].argmax(1)], theta[:-1])
        first = np.where(some, points[np.arange(len(points)), free.argmax(1)], theta[1:])
        above = np.append(last - theta[:-1], np.inf)  # to the far edge of the free zone above
        below = np.append(np.inf, theta[1:] - first)
        nearest: Array = np.minimum(above, below)
        return nearest

    @cached_property
    def bounds(self) -> Array:
        r"""`(k,)`: the residual r, or :math:`r^2 /` gap where the gap is known and that is smaller."""
        with np.errstate(divide="ignore", invalid="ignore"):
            quadratic = np.where(self.gaps > self._loose, self._loose**2 / self.gaps, np.inf)
        found: Array = np.minimum(self._loose, quadratic) + self.rounding
        return found

    @cached_property
    def _loose(self) -> Array:
        """The residuals without the allowance for rounding."""
        found: Array = np.linalg.norm(self._outwards, axis=0) if self._outwards.size else np.zeros(len(self.values))
        return found

    def _possible(self, points: Array) -> Array:
        """Whether an eigenvalue at each of the points is not ruled out."""
        apart = self.values[None, :] - points[:, None]  # (m, k)
        inverse = 1.0 / np.where(np.abs(apart) > _TINY, apart, _TINY)
        M = (self._outwards * inverse[:, None, :]) @ self._start  # (m, p, b)
        possible: Array = np.square(M).sum((1, 2)) >= self._least
        return possible

    @cached_property
    def _least(self) -> float:
        """The 5 % quantile of the squared length of a standard normal vector; nothing is below 0."""
        return 2 * float(gammaincinv(self._start.shape[1] / 2, _RISK)) if self._start.shape[1] else 0.0


def ritz(space: BlockKrylov, random: Array, *, dimensions: int | None = None) -> Ritz:
    """The Ritz pairs of a space, or of what it was after its first steps.

    Args:
        space: The space.
        random: `(b', b)`, the coordinates of independent standard normal vectors in the first block; b may be 0.
        dimensions: Leading dimensions to use; None for all.

    Returns:
        The pairs. No product is taken.
    """
    T, k = space.projected, space.dimension if dimensions is None else dimensions
    values, U = np.linalg.eigh((T[:k, :k] + T[:k, :k].T) / 2)
    outside = np.concatenate([T[k:, :k], space.coupling[:, :k]])
    outside = outside[np.abs(outside).max(1, initial=0.0) > 0]
    scale = float(np.abs(values).max())
    start = np.zeros((k, random.shape[1]))
    start[: len(random)] = random[:k]
    outwards, inwards = outside @ U, U.T @ start
    lengths = np.maximum(np.square(start).sum(0), np.finfo(float).tiny)
    rounding = _ROUNDINGS * space.unit * scale
    residuals = np.linalg.norm(outwards, axis=0) + rounding
    return Ritz(values, U, residuals, np.square(inwards).T / lengths[:, None], scale, rounding, outwards, inwards)
