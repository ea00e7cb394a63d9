"""Krylov spaces of a symmetric operator, and the Ritz pairs at both ends of its spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.operator import SymmetricOperator
from lossscope.probes.spectrum_estimate import EigenPairs

__all__ = ["KrylovSpace", "krylov_space"]

# Steps before a residual is believed to belong to an end of the spectrum. Twice as many for the lower end, where a
# network has no outliers: there an inner Ritz value can rest for some steps with a small residual.
_FEWEST: Final = 8
_RANDOM_SHARE: Final = 0.3  # of a warm start, so that an eigenvalue that has overtaken the old one is seen
Array = np.ndarray[Any, Any]
_WHOLE: Final = 32  # up to this size the space is grown to the whole space: nothing can be missed
_ROUNDINGS: Final = 100  # one to five units on ordinary networks, about twenty where the softmax is saturated
_BACK: Final = 4  # steps over which an end must have come to rest
_OFTEN: Final = 32  # up to here the small problem is solved at each step, then at every fourth


@dataclass(frozen=True)
class KrylovSpace:
    """An orthonormal basis with its images, from which Ritz pairs and their exact residuals follow."""

    basis: Tensor  # (k, n) float64, orthonormal rows q
    images: Tensor  # (k, n) float64, rows A q
    unit: float  # rounding unit of the products that gave the images

    def pairs(self, count: int, rel: float, *, largest: bool) -> EigenPairs:
        """The Ritz pairs at one end of the spectrum.

        Args:
            count: How many; fewer where the space is smaller.
            rel: A residual up to `rel` times the largest absolute Ritz value counts as converged.
            largest: Whether the largest ones (descending) or the smallest ones (ascending).

        Returns:
            The pairs. The residual is taken from the stored images: no further product. As these are off by
            rounding, which their own residual cannot see, a hundred units of the largest Ritz value are added.
        """
        projected = (self.basis @ self.images.mT).cpu()
        values, coefficients = torch.linalg.eigh((projected + projected.mT) / 2)
        scale = float(values.abs().max())
        if largest:
            values, coefficients = values.flip(0), coefficients.flip(1)
        values, coefficients = values[:count], coefficients[:, :count].to(self.basis.device)
        vectors = self.basis.mT @ coefficients
        defects = self.images.mT @ coefficients - vectors * values.to(vectors.device)
        residuals = torch.linalg.vector_norm(defects, dim=0).cpu() + _ROUNDINGS * self.unit * scale
        return EigenPairs(values, vectors, residuals, residuals <= rel * scale)


def krylov_space(
    operator: SymmetricOperator,
    *,
    top: int,
    bottom: int,
    rel: float,
    max_products: int,
    generator: torch.Generator,
    warm_start: Tensor | None = None,
) -> KrylovSpace:
    r"""The Krylov space of a start vector, grown until both ends of the spectrum are as sharp as asked.

    Each new vector is made orthogonal to all earlier ones twice, in float64, so no copies ("ghosts") of
    converged eigenvalues appear; products are taken in the operator's dtype. An end of the Ritz values only
    moves outwards as the space grows, and it may pass close to an inner eigenvalue on its way: a small residual
    alone can belong to that one. So an end must also have moved by less than a quarter of the bound in the
    last four steps. Where the space is
    invariant, and smaller than the number of pairs asked for, it goes on from a new random vector.

    A start vector sees one copy of a multiple eigenvalue only. Up to `n = 32` the whole space is spanned, and
    all eigenvalues are found.

    Args:
        operator: `(n, n)`.
        top: Pairs wanted at the upper end.
        bottom: Pairs wanted at the lower end.
        rel: Stop when their residuals are at most `rel` times the largest absolute Ritz value.
        max_products: Stop after so many products in any case; at most `n` are ever needed.
        generator: On the CPU, the only source of randomness.
        warm_start: `(n,)` or `(n, j)`, vectors near the wanted ones; a random part is added to them.

    Returns:
        The space, of dimension `max_products` or less.

    Raises:
        ProbeError: `warm_start` does not fit or is not finite, or a product is not finite.

    Source:
        C. Lanczos (1950), J. Res. Nat. Bur. Standards 45, 255-282; B. Parlett (1998), The Symmetric
        Eigenvalue Problem, section 6.9 (twice is enough) and theorem 4.5.1 (the residual bound).
    """
    growth = _Growth(operator, generator, warm_start)
    limit = min(operator.size, max_products)
    while True:
        growth.step()
        if growth.dimension == limit:
            return growth.space()
        if growth.ends_met(top, bottom, rel):
            space = growth.space()
            ends = [space.pairs(top, rel, largest=True), space.pairs(bottom, rel, largest=False)]
            if all(bool(pairs.converged.all()) for pairs in ends):
                return space


class _Growth:
    """A Krylov space while it grows; `basis` and `images` have spare rows."""

    def __init__(self, operator: SymmetricOperator, generator: torch.Generator, warm_start: Tensor | None) -> None:
        self._operator = operator
        self._generator = generator
        self._basis = self._images = torch.empty(0, operator.size, dtype=torch.float64, device=operator.device)
        self._diagonal: list[float] = []
        self._beside: list[float] = []  # the last one couples to the vector that is not in yet
        self._next = self._start(warm_start)
        self.dimension = 0

    def space(self) -> KrylovSpace:
        """The space as it is now."""
        unit = float(torch.finfo(self._operator.dtype).eps)
        return KrylovSpace(self._basis[: self.dimension], self._images[: self.dimension], unit)

    def step(self) -> None:
        """Take one product and prepare the next vector."""
        self._make_room()
        k = self.dimension
        self._basis[k] = self._next
        self._images[k] = (self._operator @ self._next).double()
        self.dimension = k + 1
        self._diagonal.append(float(self._basis[k] @ self._images[k]))
        rest = self._orthogonal(self._images[k])
        beside = float(torch.linalg.vector_norm(rest))
        if beside <= self._rounding():
            rest, beside = self._orthogonal(self._random()), 0.0
        self._beside.append(beside)
        self._next = _unit(rest)

    def ends_met(self, top: int, bottom: int, rel: float) -> bool:
        """Whether the recurrence says that the residuals of both ends are small enough."""
        from scipy.linalg import eigh_tridiagonal

        k, closed = self.dimension, self._beside[-1] == 0.0
        if self._operator.size <= _WHOLE:
            return False
        fewest = 1 if closed else _FEWEST * (2 if bottom else 1)
        if k < max(top + bottom, fewest) or (k > _OFTEN and k % _BACK and not closed):
            return False
        values, vectors = eigh_tridiagonal(self._diagonal, self._beside[:-1])
        residuals = self._beside[-1] * np.abs(vectors[-1])
        target = rel * np.abs(values).max()
        if np.any(_ends(residuals, top, bottom) > target):
            return False
        if closed:
            return True
        if (before := k - _BACK) < max(top, bottom):
            return False
        earlier = eigh_tridiagonal(self._diagonal[:before], self._beside[: before - 1], eigvals_only=True)
        moved = np.abs(_ends(values, top, bottom) - _ends(earlier, top, bottom))
        return bool(np.all(moved <= target / 4))

    def _rounding(self) -> float:
        """Below this the rest of an image is rounding: the space is invariant."""
        size = max(map(abs, self._diagonal + self._beside))
        return 10 * float(torch.finfo(self._operator.dtype).eps) * max(size, math.ulp(0.0))

    def _orthogonal(self, vector: Tensor) -> Tensor:
        """The part of a vector orthogonal to the basis, to the last digit after two sweeps."""
        Q = self._basis[: self.dimension]
        for _ in range(2):
            vector = vector - Q.mT @ (Q @ vector)
        return vector

    def _random(self) -> Tensor:
        """A Gaussian vector of length near one."""
        drawn = torch.randn(self._operator.size, generator=self._generator, dtype=torch.float64)
        return (drawn / math.sqrt(self._operator.size)).to(self._basis.device)

    def _start(self, warm_start: Tensor | None) -> Tensor:
        start = self._random()
        if warm_start is not None:
            start = _direction(warm_start, self._operator.size).to(start) + _RANDOM_SHARE * start
        return _unit(start)

    def _make_room(self) -> None:
        if self.dimension == len(self._basis):
            spare = self._basis.new_empty(max(16, self.dimension // 2), self._operator.size)
            self._basis = torch.cat([self._basis, spare])
            self._images = torch.cat([self._images, spare])


def _ends(ascending: Array, top: int, bottom: int) -> Array:
    """The last `top` and the first `bottom` entries."""
    return np.concatenate([ascending[len(ascending) - top :], ascending[:bottom]])


def _direction(warm_start: Tensor, size: int) -> Tensor:
    """The unit vector in the middle of the warm vectors; zero where they are."""
    if warm_start.ndim not in (1, 2) or len(warm_start) != size or not bool(torch.isfinite(warm_start).all()):
        raise ProbeError(f"warm_start has shape {tuple(warm_start.shape)}, need finite numbers ({size},) or (n, j)")
    columns = warm_start.detach().double().reshape(size, -1)
    return _unit(_unit(columns).sum(1))


def _unit(columns: Tensor) -> Tensor:
    """The columns at length one; zeros stay zeros."""
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0)
    return columns / lengths.clamp_min(torch.finfo(torch.float64).tiny)
