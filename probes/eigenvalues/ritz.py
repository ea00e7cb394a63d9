"""Ritz pairs of a Krylov space, their residuals, and intervals in which no eigenvalue lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from scipy.special import gammaincinv

from lossscope.probes.eigenvalues.block_krylov import Array, Restart
from lossscope.probes.eigenvalues.start_block import Space
from lossscope.probes.eigenvalues.three_vectors import ThreeVectors

__all__ = ["Ritz", "ritz"]

_RISK: Final = 0.05  # probability of an eigenvalue outside its bound
_FAR: Final = 3.0  # and at this multiple of the bound
_FAR_RISK: Final = 0.001  # this one: a start that nearly misses the outermost eigenvector finds the next one instead
_DISTINCT: Final = 0.5  # length of what a unit Ritz vector adds to those of smaller residuals; of a copy it is near 0
_PARALLEL: Final = 0.9  # cosine of the sketches of two vectors that are the same
_UNSURE: Final = 1.1  # ratio of a length to its sketch, at most
_POINTS: Final = 24  # points between two Ritz values, or beyond the last, that are tested for an eigenvalue
_TINY: Final = 1e-120  # smallest distance of a point from a Ritz value
_NEAREST, _FARTHEST = 1e-12, 1e6  # distances tested, relative to the largest Ritz value


@dataclass(frozen=True)
class History:
    """The random start of a space that was restarted."""

    restarts: Sequence[Restart]
    first: Array  # (b', b), coordinates of the start in the first block
    dimension: int  # of the space now

    def start(self, points: Array) -> Array:
        """Return the coordinates of the start in the present basis, `(m, k, b)`, for m eigenvalues that are tested."""
        S = np.broadcast_to(self.first, (len(points), *self.first.shape))
        for one in self.restarts:
            S = _padded(S, len(one.kept))
            apart = one.values[None, :] - points[:, None]
            inverse = 1.0 / np.where(np.abs(apart) > _TINY, apart, _TINY)
            S = np.concatenate([one.kept.T @ S, -(one.outwards * inverse[:, None, :]) @ (one.others.T @ S)], 1)
        return _padded(S, self.dimension)


def _padded(S: Array, rows: int) -> Array:
    """Append rows of zeros to each matrix."""
    return np.pad(S, ((0, 0), (0, rows - S.shape[1]), (0, 0)))


@dataclass(frozen=True)
class Ritz:
    r"""Ritz pairs of a space, ascending, with the bounds that follow from its random start.

    **Excluding eigenvalues.** Let v be an eigenvector of A with eigenvalue :math:`\lambda`. From
    :math:`AQ = QT + Q_+C` follows :math:`v^\top Q = -v^\top Q_+ C (T - \lambda)^{-1}`, so for the random columns X
    of the start, with coordinates S in the basis,

    .. math:: X^\top v = M(\lambda)^\top Q_+^\top v, \qquad M(\lambda) = -C (T - \lambda)^{-1} S,

    and :math:`|X^\top v| \le \lVert M(\lambda)\rVert`. For any A the left side is the length of a standard normal
    vector with b entries: it is below :math:`\delta_b`, the square root of the 5 % quantile of :math:`\chi^2_b`, with
    probability 5 %. So where :math:`\lVert M(\lambda)\rVert_F < \delta_b` an eigenvalue is excluded at 95 %
    confidence. As a Ritz value never lies outside the spectrum, an end of the spectrum is enclosed between the
    outermost Ritz value and the first point beyond which all eigenvalues are excluded. Where v is among the 5 % that
    the start nearly misses, the space converges to the next eigenvalue, and the distance to the true one may be many
    bounds. So an end counts as enclosed only if eigenvalues beyond three times the distance are excluded with 99.9 %
    confidence too, by the 0.1 % quantile.

    **After a restart** the space lacks Ritz vectors :math:`Y_d = Q U_d` with the values :math:`\theta_d`, in which
    X had the coordinates :math:`S_d`. For them the relation of that time says

    .. math:: v^\top Y_d = -v^\top Q_+ C U_d (\theta_d - \lambda)^{-1},

    and its :math:`Q_+` belongs to the present basis. So S is replaced by :math:`S(\lambda)`, in which
    :math:`-C U_d (\theta_d - \lambda)^{-1} S_d` are the coordinates in that block, and nothing is lost.

    Source:
        The case of one vector: J. van Dorsselaer, M. Hochstenbach, H. van der Vorst (2000), Computing
        probabilistic bounds for extreme eigenvalues of symmetric matrices with the Lanczos method, SIAM J.
        Matrix Anal. Appl. 22(3), 837-852. The block form is derived above.
    """

    values: Array  # (k,) ascending
    coefficients: Array  # (k, k), columns in the basis
    residuals: Array  # (k,), |A y - theta y| plus the rounding of a product
    weights: Array  # (b, k), squared coordinates of each normalized random start vector
    scale: float  # largest absolute Ritz value
    rounding: float  # bound of the error of a product with a unit vector, see `BlockKrylov.rounding`
    _outwards: Array  # (p, k), C U
    _start: Array  # (k, b), U'S
    _history: History | None = None  # where the space was restarted: S depends on the point tested
    _noise: float = 0.0  # rounding errors along an eigenvector, where the basis is not orthogonal
    _sketches: Array | None = None  # (m, k) of the Ritz vectors, where they may be copies of each other
    _lengths: Array | None = None  # (k,) lower bounds of their lengths there

    def outermost(self, count: int, *, largest: bool) -> Array:
        """Return the indices of the outermost Ritz pairs at one end, without copies of the same eigenvector.

        Args:
            count: Number of pairs; fewer are returned if there are no more.
            largest: True for the upper end, descending; False for the lower, ascending.
        """
        order = np.arange(len(self.values)) if self._sketches is None else self._distinct
        return (order[::-1] if largest else order)[:count]

    @cached_property
    def _distinct(self) -> Array:
        """The indices of pairs, ascending, less those whose vector lies in the span of others with smaller residuals.

        A copy on its way from one eigenvalue to the next has a large residual, and must not displace either.
        """
        assert self._sketches is not None
        products = self._sketches.T @ self._sketches
        found, shares = list[int](), np.zeros((len(products), 0))  # coordinates along those found, orthonormalized
        for index in np.argsort(self.residuals, kind="stable"):
            length = math.sqrt(max(products[index, index] - float(shares[index] @ shares[index]), 0.0))
            if length > _DISTINCT:
                found.append(int(index))
                shares = np.c_[shares, (products[:, index] - shares @ shares[index]) / length]
        return np.sort(np.array(found, dtype=int))

    @property
    def groups(self) -> list[Array]:
        """The indices of all pairs, ascending, those together that have the same vector."""
        if self._sketches is None:
            return [np.array([index]) for index in range(len(self.values))]
        unit = self._sketches / np.maximum(np.linalg.norm(self._sketches, axis=0), np.finfo(float).tiny)
        same = np.abs((unit[:, 1:] * unit[:, :-1]).sum(0)) > _PARALLEL
        return np.split(np.arange(len(self.values)), np.flatnonzero(~same) + 1)

    def enclosed(self, distance: float, *, largest: bool) -> bool:
        """Return True if an end of the spectrum is within `distance` of its Ritz value, at 95 % confidence.

        It is then within three times the distance at 99.9 % confidence.

        Args:
            distance: Distance beyond the outermost Ritz value.
            largest: True for the upper end, False for the lower.

        Returns:
            True if it is enclosed; `reach` gives the smallest such distance.
        """
        if not self._outwards.size:
            return distance >= 0
        if self._history is not None:
            return distance > 0 and self.reach(largest=largest) <= distance
        return distance > 0 and self._start.shape[1] > 0 and not self._open(np.array([distance]), largest)[0]

    def reach(self, *, largest: bool) -> float:
        """Bound the distance of an end of the spectrum from its outermost Ritz value, as `enclosed` does.

        Args:
            largest: True for the upper end, False for the lower.

        Returns:
            The distance; infinite if the start had no random vector.
        """
        if not self._outwards.size or not self.scale:
            return 0.0
        if not self._start.shape[1]:
            return math.inf
        distances, far = self.scale * np.geomspace(_NEAREST, _FARTHEST, _POINTS), math.inf
        for _ in range(3):  # three refinements give about 1 % relative accuracy
            possible = np.append(True, self._open(distances, largest))
            last = int(np.flatnonzero(possible)[-1])
            if last == len(distances):
                return math.inf
            near, far = (distances[last - 1] if last else 0.0), float(distances[last])
            distances = np.linspace(near, far, _POINTS + 1)[1:]
        return far

    @cached_property
    def gaps(self) -> Array:
        """`(k,)`: distance to the nearest other interval that may contain an eigenvalue; 0 if no gap is known.

        A gap is known if eigenvalues are excluded at some point on either side.
        """
        return self.gaps_between(self.values)

    def gaps_between(self, theta: Array) -> Array:
        """Return these distances for some of the Ritz values, ascending, between which no other is an eigenvalue."""
        if len(theta) < 2:
            return np.zeros(len(theta))
        share = (np.arange(_POINTS) + 0.5) / _POINTS
        points = theta[:-1, None] + share * np.diff(theta)[:, None]  # (k - 1, points)
        free = ~self._possible(points.ravel()).reshape(points.shape)
        some = free.any(1)
        last = np.where(some, points[np.arange(len(points)), _POINTS - 1 - free[:, ::-1].argmax(1)], theta[:-1])
        first = np.where(some, points[np.arange(len(points)), free.argmax(1)], theta[1:])
        above = np.append(last - theta[:-1], np.inf)  # to the far edge of the excluded interval above
        below = np.append(np.inf, theta[1:] - first)
        nearest: Array = np.minimum(above, below)
        return nearest

    @cached_property
    def bounds(self) -> Array:
        r"""`(k,)`: residual r, or :math:`r^2 /` gap if the gap is known and this is smaller."""
        with np.errstate(divide="ignore", invalid="ignore"):
            quadratic = np.where(self.gaps > self._loose, self._loose**2 / self.gaps, np.inf)
        found: Array = np.minimum(self._loose, quadratic) + self.rounding
        return found

    @cached_property
    def _loose(self) -> Array:
        """Residuals without the allowance for rounding."""
        found: Array = np.linalg.norm(self._outwards, axis=0) if self._outwards.size else np.zeros(len(self.values))
        return found if self._lengths is None else found / self._lengths

    def _open(self, distances: Array, largest: bool) -> Array:
        """Return a mask, True where eigenvalues beyond a distance from the outermost Ritz value are not excluded."""
        edge, sign = (self.values[-1], 1.0) if largest else (self.values[0], -1.0)
        near = self._possible(edge + sign * distances)
        far: Array = near | self._possible(edge + sign * _FAR * distances, _FAR_RISK)
        return far

    def _possible(self, points: Array, risk: float = _RISK) -> Array:
        """Return a mask, True where an eigenvalue is not excluded."""
        apart = self.values[None, :] - points[:, None]  # (m, k)
        inverse = 1.0 / np.where(np.abs(apart) > _TINY, apart, _TINY)
        start = self._start if self._history is None else self.coefficients.T @ self._history.start(points)
        M = (self._outwards * inverse[:, None, :]) @ start  # (m, p, b)
        square = np.square(M).sum((1, 2))
        if self._noise:
            lengths = np.sqrt((np.square(inverse) @ np.square(self._start)).sum(1)) / np.linalg.norm(self._start)
            square = np.square(np.sqrt(square) + self._noise * lengths)
        possible: Array = square >= self._quantile(risk)
        return possible

    def _quantile(self, risk: float) -> float:
        """Return a quantile of the squared length of a standard normal vector; 0 without a random vector."""
        return 2 * float(gammaincinv(self._start.shape[1] / 2, risk)) if self._start.shape[1] else 0.0


def ritz(space: Space, random: Array, *, dimensions: int | None = None) -> Ritz:
    """Return the Ritz pairs of a space, or of the space after its first steps.

    Args:
        space: The space.
        random: `(b', b)`, coordinates of independent standard normal vectors in the first block; b may be 0.
        dimensions: Leading dimensions to use; None for all.

    Returns:
        The pairs, without weights if the space was restarted. No product is taken.
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
    rounding = space.rounding(scale)
    residuals = np.linalg.norm(outwards, axis=0) + rounding
    weights, history = np.square(inwards).T / lengths[:, None], None
    if space.restarts:
        weights, history = np.full_like(weights, np.nan), History(space.restarts, random, k)
    found = Ritz(values, U, residuals, weights, scale, rounding, outwards, inwards, history)
    return _without_basis(found, space) if isinstance(space, ThreeVectors) else found


def _without_basis(found: Ritz, space: ThreeVectors) -> Ritz:
    """Allow for what is not known without a basis: lengths of Ritz vectors, copies, and rounding along eigenvectors."""
    sketches = space.sketched(found.coefficients)
    lengths = np.minimum(np.linalg.norm(sketches, axis=0) / _UNSURE, 1.0)
    lengths = np.maximum(lengths, np.finfo(float).tiny)
    return replace(found, residuals=found.residuals / lengths, _noise=space.noise, _sketches=sketches, _lengths=lengths)
