"""Singular values of a matrix in two sets of weights, and the angles between their leading singular subspaces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["MatrixDifference", "SingularSpectrum", "Subspaces", "matrix_difference", "random_angles", "random_overlap"]

Array: TypeAlias = NDArray[np.float64]

_EPS: Final = float(np.finfo(np.float64).eps)
_LOST: Final = 0.01  # radians of rounding from which a subspace is not determined
_DRAWS: Final = 2000
_RARE: Final = 0.01
_SEED: Final = 0


@dataclass(frozen=True, eq=False)
class SingularSpectrum:
    """Singular values of a matrix, and functions of them as `probes.singular_spectrum` has them.

    Attributes:
        values: `(r,)`, descending.
    """

    values: Array

    @property
    def norm(self) -> float:
        """Spectral norm, the largest singular value."""
        return float(self.values[0])

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over the squared spectral norm; nan for a zero matrix."""
        return float(np.square(self._relative()).sum())

    @property
    def entropy(self) -> float:
        """Energy entropy over ln r, between 0 at rank one and 1 if all singular values are equal.

        It is nan for a zero matrix and for a vector.
        """
        shares = np.square(self._relative())
        shares /= shares.sum()
        if len(shares) < 2 or not np.isfinite(shares).all():
            return math.nan
        positive = shares[shares > 0]
        return abs(float((positive * np.log(positive)).sum())) / math.log(len(shares))

    def _relative(self) -> Array:
        found: Array = self.values / (self.values[0] if self.values[0] > 0 else math.nan)
        return found


@dataclass(frozen=True, eq=False)
class Subspaces:
    r"""Angles between the spans of the leading singular vectors of two matrices, on one side.

    Attributes:
        angles: `(k,)`, principal angles in radians, ascending.
        dimension: Dimension d of the space that both lie in: rows of the matrix (left), or columns (right).
    """

    angles: Array
    dimension: int

    @property
    def overlap(self) -> float:
        r"""Mean squared cosine of the angles, :math:`\lVert U_A^\top U_B\rVert_F^2 / k`: 1 if the spans are equal."""
        return float(np.square(np.cos(self.angles)).mean())

    @property
    def beyond_chance(self) -> bool:
        """True if fewer than 1 % of pairs of random spans overlap as much."""
        by_chance = np.square(np.cos(random_angles(self.dimension, len(self.angles)))).mean(1)
        return float((by_chance >= self.overlap).mean()) < _RARE

    @property
    def expected(self) -> tuple[float, float]:
        """Mean and standard deviation of the overlap of two random spans."""
        return random_overlap(self.dimension, len(self.angles))


@dataclass(frozen=True)
class MatrixDifference:
    """Singular values of a matrix in A and B, and the angles between their leading subspaces.

    Attributes:
        a: Singular values in A.
        b: In B.
        left: Angles between the leading left singular subspaces; None if they are not determined.
        right: Of the right ones.
        gap: The smaller of the gaps of A and B between the last direction taken and the next, over the former. Where it
            is near 0 the place of the cut is arbitrary, and the angles say little.
        missing: Reason for which there are no angles.
    """

    a: SingularSpectrum
    b: SingularSpectrum
    left: Subspaces | None = None
    right: Subspaces | None = None
    gap: float = math.nan
    missing: str = ""


@dataclass(frozen=True)
class _Decomposed:
    """Singular values, and the leading vectors of the smaller side, of a matrix scaled to a largest entry of 1."""

    values: Array
    leading: Array  # (smaller side, k)
    scaled: Array
    tall: bool  # True if the columns are the smaller side


def matrix_difference(a: Array, b: Array, top: int) -> MatrixDifference:
    """Compare the singular values and the leading singular subspaces of two matrices of one shape.

    Both are taken from the eigenvectors of the Gram matrix of the smaller side, in float64.

    Args:
        a: `(m, n)`, finite.
        b: `(m, n)`.
        top: Number of directions; at most half the smaller side is taken.

    Returns:
        The difference.

    Source:
        A. Bjoerck, G. Golub (1973), Numerical methods for computing angles between linear subspaces, Math. Comp. 27.
    """
    from scipy.linalg import subspace_angles

    k = min(top, min(a.shape) // 2)
    first, second = _decomposed(a, k), _decomposed(b, k)
    spectra = SingularSpectrum(first.values), SingularSpectrum(second.values)
    reason = "fewer than two rows or columns" if k == 0 else _undetermined(first, k) or _undetermined(second, k)
    if reason:
        return MatrixDifference(*spectra, missing=reason)
    near = Subspaces(subspace_angles(first.leading, second.leading)[::-1], first.leading.shape[0])
    far_sides = _other_side(first), _other_side(second)
    far = Subspaces(subspace_angles(*far_sides)[::-1], far_sides[0].shape[0])
    left, right = (far, near) if first.tall else (near, far)
    gap = min(_gap(first, k), _gap(second, k))
    return MatrixDifference(*spectra, left, right, gap)


def random_overlap(dimension: int, k: int) -> tuple[float, float]:
    r"""Return mean and standard deviation of the overlap of two random k-dimensional subspaces.

    The mean is k / d; the variance :math:`2 (d - k)^2 / (d^2 (d - 1) (d + 2))` is that of the trace of a product of two
    independent projections, over k.

    Args:
        dimension: Dimension d of the space.
        k: Dimension of both subspaces.
    """
    d = dimension
    return k / d, math.sqrt(2 * (d - k) ** 2 / (d**2 * (d - 1) * (d + 2))) if d > 1 else 0.0


@cache
def random_angles(dimension: int, k: int) -> Array:
    """Return the principal angles between pairs of random k-dimensional subspaces, in radians.

    The squared cosines are the eigenvalues of `W (W + V)^-1`, with independent Wishart matrices W of k and V of d - k
    degrees of freedom.

    Args:
        dimension: Dimension d of the space, at least 2 k.
        k: Dimension of both subspaces.

    Returns:
        `(2000, k)`, ascending in each row; always the same draws.
    """
    random = np.random.default_rng(_SEED)
    normal = random.standard_normal((_DRAWS, k, k))
    inside = normal @ normal.transpose(0, 2, 1)
    factor = np.tril(random.standard_normal((_DRAWS, k, k)), -1)  # of a Wishart matrix, after Bartlett
    freedom = dimension - k - np.arange(k)
    factor[:, np.arange(k), np.arange(k)] = np.sqrt(random.chisquare(freedom, (_DRAWS, k)))
    outside = factor @ factor.transpose(0, 2, 1)
    shares = np.linalg.eigvals(np.linalg.solve(inside + outside, inside)).real.clip(0, 1)
    return np.sort(np.arccos(np.sqrt(shares)), axis=1)


def _decomposed(matrix: Array, k: int) -> _Decomposed:
    """Return the singular values of a matrix and the leading vectors of its smaller side."""
    largest = float(np.abs(matrix).max())
    scaled = matrix / largest if largest > 0 else matrix
    tall = matrix.shape[0] > matrix.shape[1]
    gram = scaled.T @ scaled if tall else scaled @ scaled.T
    squares, vectors = np.linalg.eigh(gram)
    values = largest * np.sqrt(squares[::-1].clip(min=0))
    return _Decomposed(values, vectors[:, ::-1][:, :k], scaled, tall)


def _other_side(one: _Decomposed) -> Array:
    """Return the leading vectors of the larger side, up to their lengths."""
    found: Array = (one.scaled if one.tall else one.scaled.T) @ one.leading
    found /= np.sqrt(np.square(found).sum(0))
    return found


def _gap(one: _Decomposed, k: int) -> float:
    """Return the gap after the k-th singular value, over it."""
    return float(1 - one.values[k] / one.values[k - 1])


def _undetermined(one: _Decomposed, k: int) -> str:
    """Return the reason for which the leading k directions are not determined; empty if they are.

    The angle by which rounding turns them is at most about the rounding of the Gram matrix over the gap of its
    eigenvalues.
    """
    if not one.values[0] > 0:
        return "the matrix is zero"
    values = one.values / one.values[0]
    if values[k - 1] ** 2 - values[k] ** 2 <= len(values) * _EPS / _LOST:
        return f"singular values {k} and {k + 1} are equal within rounding"
    return ""
