"""Lanczos recurrence that holds three vectors: no basis is kept, and copies of eigenvalues are told by a sketch."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.eigenvalues.block_krylov import Restart, check_size
from lossscope.probes.eigenvalues.measured_rounding import MeasuredRounding, random_rounding
from lossscope.probes.eigenvalues.orthonormal_rows import Array
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators import random_vectors
from lossscope.probes.operators.base import MARGIN, SymmetricOperator
from lossscope.probes.sums import dot, norm, rough_dot, sketch

__all__ = ["ThreeVectors"]

_BUCKETS: Final = 1021  # entries of a sketch: prime, so that no row or column of a layer falls into one bucket
_SKETCH: Final = 0x5851F42D4C957F2D  # makes the signs of sketches independent of other draws of the same seed
_SUSPICIOUS: Final = 100.0  # difference of q'Ap and p'Aq, in rounding units of the longest image, that is not suspected
_ASYMMETRY: Final = 1e4  # and above which an operator whose rounding cannot be measured is not symmetric
_EXPLAINED: Final = 10.0  # largest difference that measured rounding explains, in units of it
_CHECKED: Final = 4  # steps in which symmetry is checked
_INCOHERENT: Final = 4.0  # component of a rounding error along one vector, in units of the mean one


class ThreeVectors(MeasuredRounding):
    r"""The tridiagonal matrix T of the Lanczos recurrence from one start vector, computed with three vectors.

    The recurrence reads

    .. math:: A Q = Q T + \beta q_+ e_k^\top + F,

    with unit columns Q and rounding errors F. It holds to rounding whether or not Q is orthogonal, which rounding
    destroys as soon as an eigenpair has converged: T then has further eigenvalues near that one ("ghosts"). From the
    recurrence alone follow

    * the residual of a Ritz vector :math:`y = Q s`, :math:`|Ay - \theta y| = \beta |s_k|` up to F. It bounds the
      distance of an eigenvalue if :math:`|y|` is known to be near 1;
    * the exclusion of eigenvalues from the random start (`Ritz`), as no step of it uses :math:`Q^\top Q = I`: with
      :math:`p = Q^\top v` for an eigenvector v, :math:`p^\top (\lambda - T) = \beta\, q_+^\top v\, e_k^\top +
      v^\top F`;
    * the quadrature of the spectral measure of the start: a ghost shares the weight of its eigenvalue, so sums over
      the nodes are right, and counts of nodes are not.

    In addition a random sketch :math:`S q` of about a thousand numbers of each vector is kept. Lengths and angles of
    Ritz vectors follow from :math:`S Q s` to a few percent, so a ghost is told from another eigenvector: it has the
    same sketch.

    Args:
        operator: A, `(n, n)`.
        start: `(n,)`, not zero; it is overwritten.
        seed: Seed of the sketch.
        measures_rounding: False for no product in float64, which needs the memory of fifteen vectors; the rounding of
            products is then assumed.
        is_random: True if the start is standard normal, so that `random` is known from the first product.

    Source:
        C. Paige (1976), Error analysis of the Lanczos algorithm for tridiagonalizing a symmetric matrix, J. Inst.
        Maths Applics 18, 341-349. M. Charikar, K. Chen, M. Farach-Colton (2002), Finding frequent items in data
        streams, for the sketch.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor,
        seed: int,
        *,
        measures_rounding: bool = True,
        is_random: bool = False,
    ) -> None:
        super().__init__(operator)
        length = float(norm(start))
        self.start: Array = np.full((1, 1), length)  # coordinate of the start vector in the first basis vector
        self.restarts: list[Restart] = []
        self.steps = self.products = 0
        self.exhausted = False  # True if the space is invariant
        self._current: Tensor | None = start.div_(length)
        self._previous: Tensor | None = None
        self._alpha: list[float] = []
        self._beta: list[float] = []
        self._longest = 0.0
        self._is_random = is_random
        self._can_measure = self._due = measures_rounding  # due: the error of the next product is measured
        signs = torch.Generator().manual_seed((seed ^ _SKETCH) % 2**63)
        self._signs = random_vectors.signs(operator.size, signs).to(operator.device)
        self._sketches: list[Array] = []

    @property
    def size(self) -> int:
        """`n`."""
        return self._operator.size

    @property
    def dimension(self) -> int:
        """Number of steps, k."""
        return len(self._alpha)

    @property
    def width(self) -> int:
        """1, or 0 if the space is invariant."""
        return int(not self.exhausted)

    @property
    def projected(self) -> Array:
        """T, `(k, k)`."""
        off = self._beta[: self.dimension - 1]
        found: Array = np.diag(np.array(self._alpha)) + np.diag(off, 1) + np.diag(off, -1)
        return found

    @property
    def coupling(self) -> Array:
        """Products outside the space, `(1, k)`; `(0, k)` if it is invariant."""
        found = np.zeros((self.width, self.dimension))
        if self.width and self.dimension:
            found[0, -1] = self._beta[-1]
        return found

    @property
    def noise(self) -> float:
        r"""Bound of :math:`|F^\top v|` for an eigenvector v, times the length of the start.

        Errors of rounding are incoherent with v: each has a component of about :math:`|f_j| / \sqrt n` along it. Those
        that are not, such as the errors of coarse factors in a product, act as a change of A, whose norm is part of
        every bound.
        """
        error = self.rounding(self._scale)
        return _INCOHERENT * float(self.start[0, 0]) * error * math.sqrt(self.dimension / self.size)

    def sketched(self, coefficients: Array) -> Array:
        """Return the sketches of vectors of the space as columns, `(m, j)`.

        Args:
            coefficients: `(k, j)`, their coordinates in the basis.
        """
        found: Array = np.stack(self._sketches[: len(coefficients)], 1) @ coefficients
        return found

    def measure_next(self) -> None:
        """Measure the error of the next product; it enters `rounding` from then on."""
        self._due = self._can_measure

    def release(self) -> None:
        """Release the three vectors: no further step is taken."""
        self._current = self._previous = None

    def step(self, at_most: int = 1) -> None:
        """Take one product, if `at_most` allows one and the space is not invariant."""
        q = self._current
        if at_most < 1 or q is None:
            return
        self._sketches.append(sketch(q, self._signs, _BUCKETS).cpu().numpy())
        image = self._operator @ q
        check_size(image)
        if self._due:
            self._measure(q, image)
        back = 0.0 if self._previous is None else self._beta[-1]
        if self._previous is not None:
            image.sub_(self._previous, alpha=back)
        share = float(rough_dot(q, image))
        image.sub_(q, alpha=share)
        left = float(dot(q, image))  # the second time removes what the rounding of the first has left
        image.sub_(q, alpha=left)
        alpha, off = share + left, 0.0
        if self._previous is not None:
            off = float(dot(self._previous, image))
            image.sub_(self._previous, alpha=off)
        beta = float(norm(image))
        self._longest = max(self._longest, math.hypot(back, alpha, beta))
        if 0 < len(self._alpha) < _CHECKED:
            self._check_symmetric(q, abs(off))
        self._alpha.append(alpha)
        self.exhausted = not beta > 10 * self._operator.unit * self._scale
        self._beta.append(0.0 if self.exhausted else beta)
        self._previous, self._current = (None, None) if self.exhausted else (q, image.div_(beta))
        self.steps += 1
        self.products += 1

    def replay(self, start: Tensor, coefficients: Array) -> Tensor:
        """Run the recurrence once more and return the unit vector with these coordinates in its basis, `(n,)`.

        Args:
            start: `(n,)`, the start vector as it was before; it is overwritten.
            coefficients: `(k,)`; k - 1 products are taken.
        """
        again = ThreeVectors(self._operator, start, 0, measures_rounding=False)
        found = torch.zeros_like(start)
        for place, share in enumerate(coefficients):
            if again._current is not None:
                found.add_(again._current, alpha=float(share))
            if place + 1 < len(coefficients):
                again.step()
        return found.div_(float(norm(found)))

    @property
    def _scale(self) -> float:
        """Largest absolute entry of T, at least that of its eigenvalues over three."""
        return max(map(abs, (*self._alpha, *self._beta[: self.dimension - 1])), default=0.0)

    def _measure(self, q: Tensor, image: Tensor) -> None:
        """Measure the error of a product."""
        self._due = False
        found = self._operator.product_error(q[:, None], image[:, None])
        if found is not None:
            self.raise_error(MARGIN * float(found.norms.max()))
        if self._is_random and not self.steps:
            self.random = random_rounding(found, q[:, None])

    def _check_symmetric(self, q: Tensor, off: float) -> None:
        """Raise if p'Aq and q'Ap differ by more than rounding for two successive vectors p and q, by `off`."""
        unit = self._operator.unit
        if not off > _SUSPICIOUS * unit * self._longest:
            return
        if self._can_measure:
            self._measure(q, self._operator @ q)
        measured = _EXPLAINED * self.measured_error / MARGIN
        allowed = max(measured, _SUSPICIOUS * unit * self._longest) if measured else _ASYMMETRY * unit * self._longest
        lost = self._operator.lost_digits * self._longest
        if allowed < off <= _EXPLAINED * lost:
            self.raise_error(MARGIN * lost)
            return
        if off > allowed:
            raise ProbeError(
                f"the operator is not symmetric: q'Ap and p'Aq differ by {off / self._longest:.2g} of the norm of a "
                f"product, where {allowed / self._longest:.2g} is allowed: {self._operator.asymmetry_hint}"
            )
