"""Block Krylov space of a symmetric operator: an orthonormal basis and what leaves it, grown step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.eigenvalues.measured_rounding import MeasuredRounding, random_rounding
from lossscope.probes.eigenvalues.orthonormal_rows import Array, OrthonormalRows
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import MARGIN, SymmetricOperator
from lossscope.probes.sums import dot, gram, norm, row_norms

__all__ = ["Array", "BlockKrylov", "Restart", "check_size"]

_LOST: Final = 0.7  # ratio of lengths below which a vector is orthogonalized a second time
# difference of q'Ap and p'Aq, in rounding units of the longest image, below which nothing is suspected
_SUSPICIOUS: Final = 100.0
_ASYMMETRY: Final = 1e4  # and above which an operator whose rounding cannot be measured is not symmetric
_EXPLAINED: Final = 10.0  # largest difference that measured rounding explains, in units of it
_SIZES: Final = (1e-70, 1e70)  # products of which fourth powers are representable in float64
_NONLINEAR: Final = 0.3  # relative error of the image of a sum above which images are rounding only
_SMALL: Final = 0.1  # a remainder below this share of the largest entry is orthogonalized again
_CHECKED: Final = 4  # dimensions up to which symmetry is checked


@dataclass(frozen=True)
class Restart:
    """Record of what a restart has removed from a Krylov space of k dimensions."""

    kept: Array  # (k, j), coefficients of the Ritz vectors that stay: the first j vectors of the new basis
    others: Array  # (k, k - j), coefficients of the others
    values: Array  # (k - j,), their Ritz values
    outwards: Array  # (p, k - j), what leaves the space from them, in the next block: the next p vectors of the basis


class BlockKrylov(MeasuredRounding):
    r"""The space spanned by :math:`X, AX, A^2X, \dots`, with an orthonormal basis Q.

    Every new block is made orthogonal to the whole basis, so no copies ("ghosts") of converged eigenvalues appear.
    `projected` is :math:`T = Q^\top A Q` in float64, computed from the images; `coupling` is C in

    .. math:: A Q = Q T + Q_+ C,

    where the block :math:`Q_+` is not in the space yet; residuals follow from C without a product. The images AQ are
    not kept, as this relation gives them (`images_of`); what it loses by rounding is part of the error that
    `measure_rounding` finds. The basis has the operator's dtype, as the products are no more precise.

    A long basis may be cut to its Ritz vectors of interest (`restart`); the relation goes on to hold.

    Args:
        operator: A, `(n, n)`.
        start: `(b, n)`, the rows of :math:`X^\top`; linearly dependent rows are dropped.
        generator: CPU generator of the vectors with which an invariant space is extended.
        spill: Folder of the files in which the basis lies, of a basis on the CPU; None for memory.

    Source:
        G. Golub, R. Underwood (1977), The block Lanczos method for computing eigenvalues; B. Parlett (1998), The
        Symmetric Eigenvalue Problem, sections 6.9 (twice is enough) and 13.10.
    """

    def __init__(
        self, operator: SymmetricOperator, start: Tensor, generator: torch.Generator, *, spill: Path | None = None
    ) -> None:
        super().__init__(operator)
        self._generator = generator
        start = start.to(operator.device, operator.dtype)
        self._rows = OrthonormalRows(start, spill)
        self._first: list[Tensor] = []  # images of the first block steps, until symmetry has been checked
        self.projected: Array = np.zeros((0, 0))  # T, (k, k)
        self.image_square = 0.0  # squared Frobenius norm of A Q
        self.restarts: list[Restart] = []
        self._scale = 0.0  # largest absolute entry of T so far
        self._longest = 0.0  # norm of the longest image so far
        self.steps = 0  # number of block steps
        self.products = 0  # number of vectors multiplied: those removed by restarts too
        self._pending, across = self._independent(start, 0.0)
        self.start: Array = across  # (b', b), coordinates of X in the first block
        self.coupling: Array = np.zeros((len(self._pending), 0))

    @property
    def dimension(self) -> int:
        """Number of basis vectors, k."""
        return len(self._rows)

    @property
    def basis(self) -> Tensor:
        """Q', `(k, n)`, orthonormal rows: a copy."""
        return self._rows.matrix

    @property
    def images(self) -> Tensor:
        """(AQ)', `(k, n)`, by the relation."""
        return self.images_of(np.eye(self.dimension))

    def mixed(self, coefficients: Array) -> Tensor:
        """Return vectors of the space as rows, `(j, n)`.

        Args:
            coefficients: `(k, j)`, their coordinates in the basis.
        """
        return self._rows.mixed(coefficients)

    def images_of(self, coefficients: Array) -> Tensor:
        """Return the products of A with vectors of the space as rows, `(j, n)`, by the relation.

        Args:
            coefficients: `(k, j)`, coordinates of the vectors in the basis.
        """
        return self.mixed(self.projected @ coefficients) + self.outwards(coefficients)

    def outwards(self, coefficients: Array) -> Tensor:
        """Return the parts of these products outside the space as rows, `(j, n)`."""
        weights = torch.from_numpy(np.ascontiguousarray((self.coupling @ coefficients).T)).to(self._pending)
        return torch.mm(weights, self._pending)

    def without(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Project rows `(j, n)` onto the complement; return them and their coordinates `(j, k)` in float64."""
        return self._rows.without(rows)

    @property
    def size(self) -> int:
        """`n`."""
        return self._operator.size

    @property
    def exhausted(self) -> bool:
        """True if the space is the whole one; an invariant space is extended by a random vector."""
        return self.dimension >= self.size

    @property
    def width(self) -> int:
        """Number of vectors of the next block; 0 if the space is invariant."""
        return len(self._pending)

    def measure_rounding(self, coefficients: Array, *, last_is_random: bool = False) -> None:
        """Measure the error of products with vectors of the space; it enters `rounding` from then on.

        Args:
            coefficients: `(k, j)`, orthonormal columns, coordinates of the vectors in the basis. Each costs one product
                with the operator's reference, if there is one.
            last_is_random: True if the last vector has a random direction: its error is `random` from then on.
        """
        for index, column in enumerate(coefficients.T[:, :, None], 1):  # one by one: each takes several vectors
            vector, image = self.mixed(column), self.images_of(column)
            found = self._operator.product_error(vector.mT, image.mT)
            if found is not None:
                self.raise_error(MARGIN * float(found.norms.max()))
            if last_is_random and index == coefficients.shape[1]:
                self.random = random_rounding(found, vector.mT)

    def step(self, at_most: int) -> None:
        """Multiply the next block, or as many of its vectors as `at_most` > 0 products allow."""
        if not len(self._pending):
            self._pending = self._random()
        pending, size = self._pending, min(len(self._pending), at_most)
        block, rest = pending[:size], pending[size:]
        first, last = self.dimension, self.dimension + size
        images = (self._operator @ block.mT).mT
        check_size(images)
        self._rows.append(block)
        lengths = row_norms(images)
        self._longest = max(self._longest, float(lengths.max()))
        self.image_square += float(lengths.square().sum())
        if first <= _CHECKED:
            self._first.append(images)
        remainder, coordinates = self._orthogonal(images)
        self._check_symmetric(block, coordinates, first)
        del images, block
        self.projected = np.pad(self.projected, (0, size))
        self.projected[:last, first:last] = coordinates
        self.projected[first:last, :last] = coordinates.T
        self._scale = max(self._scale, float(np.abs(coordinates).max()))
        self._advance(rest, remainder)
        self.steps += 1
        self.products += size

    def restart(self, values: Array, kept: Array, others: Array) -> None:
        r"""Cut the basis to some of its Ritz vectors, in place; the space grows on from there.

        Args:
            values: Ritz values of the others.
            kept: `(k, j)`, coefficients of the Ritz vectors to keep.
            others: `(k, k - j)`, coefficients of the others.

        Source:
            K. Wu, H. Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix
            Anal. Appl. 22(2), 602-616.
        """
        self.restarts.append(Restart(kept, others, values, self.coupling @ others))
        self.projected = kept.T @ self.projected @ kept
        self.coupling = self.coupling @ kept
        self._rows.rotate(kept)
        self.image_square = float(np.square(self.projected).sum() + np.square(self.coupling).sum())

    def _advance(self, rest: Tensor, remainder: Tensor) -> None:
        """Build the next block from the rest of the current one and the remainder of the new images."""
        new, across = self._independent(remainder, self._rounding())
        if len(rest):  # the block was split: its other vectors stay pending beside the new ones
            new, turned = self._independent(torch.cat([rest, remainder]), self._rounding())
            across = turned[:, len(rest) :]
        old = self.coupling if len(rest) else np.zeros((0, self.coupling.shape[1]))
        kept = np.zeros((len(new), self.dimension))
        if len(rest):
            kept[: len(rest), : old.shape[1]] = old[len(old) - len(rest) :]
        kept[:, self.dimension - len(remainder) :] = across
        self._pending, self.coupling = new, kept

    def _orthogonal(self, rows: Tensor) -> tuple[Tensor, Array]:
        """Return the part of the rows orthogonal to the basis, and their coordinates in it."""
        lengths = row_norms(rows)
        rows, coordinates = self.without(rows)
        if bool((row_norms(rows) < _LOST * lengths).any()):
            rows, again = self.without(rows)
            coordinates = coordinates + again
        return rows, coordinates.cpu().numpy().T

    def _independent(self, rows: Tensor, least: float) -> tuple[Tensor, Array]:
        """Orthonormalize rows, dropping remainders up to `least`; return them and the coordinates of the given rows."""
        kept: list[Tensor] = []
        across = np.zeros((len(rows), len(rows)))
        unit = self._operator.unit
        for index, given in enumerate(rows):
            row = given
            for _ in range(2):
                for place, other in enumerate(kept):
                    share = float(dot(other, row))
                    across[place, index] += share
                    row = row - share * other
            length = float(norm(row))
            if length > max(least, 10 * unit * float(norm(given))):
                row = row / length
                if self.dimension and length < _SMALL * self._scale:
                    # normalizing has amplified the component in the basis
                    row = self.without(row[None])[0][0]
                    row = row / float(norm(row))
                across[len(kept), index] = length
                kept.append(row)
        return (torch.stack(kept) if kept else rows[:0]), across[: len(kept)]

    def _random(self) -> Tensor:
        """Return a random unit row orthogonal to the basis."""
        row, _ = self._orthogonal(self._operator.normal(self._generator)[None])
        row, _ = self._orthogonal(row / float(norm(row)))
        return row / float(norm(row))

    def _rounding(self) -> float:
        """Return the length below which a remainder is rounding."""
        return 10 * self._operator.unit * max(self._scale, math.ulp(0.0))

    def _check_symmetric(self, block: Tensor, coordinates: Array, first: int) -> None:
        """Raise if q'Ap and p'Aq differ by more than rounding, on the scale of the images' norms."""
        if first > _CHECKED:
            self._first.clear()
            return
        known = torch.cat(self._first)
        difference = np.abs(gram(known, block).cpu().numpy() - coordinates)
        off, unit = float(difference.max()), self._operator.unit
        if not off > _SUSPICIOUS * unit * self._longest:
            return
        pair = sorted({int(np.argmax(difference.max(1))), first + int(np.argmax(difference.max(0)))})
        q, images = self.basis[pair].mT, known[pair].mT
        found = self._operator.product_error(q, images)
        if found is None:
            allowed = _ASYMMETRY * unit * self._longest
        else:
            error = float(found.norms.max())
            self.raise_error(MARGIN * error)
            allowed = max(_EXPLAINED * error, _SUSPICIOUS * unit * self._longest)
        lost = self._operator.lost_digits * self._longest
        if allowed < off <= _EXPLAINED * lost:
            self.raise_error(MARGIN * lost)
            allowed = _EXPLAINED * lost
        if off <= allowed or self._is_rounding(known):
            return
        noise = float(row_norms((self._operator @ q - images).mT).max())
        raise ProbeError(
            f"the operator is not symmetric: q'Ap and p'Aq differ by {off / self._longest:.2g} of the norm of a "
            f"product, {allowed / self._longest:.2g} is allowed, and the same product taken twice by "
            f"{noise / self._longest:.2g}: {self._operator.asymmetry_hint}"
        )

    def _is_rounding(self, images: Tensor) -> bool:
        """Return True if all images are rounding errors, as for the zero operator: they are then not even additive."""
        both = self._operator @ self.basis[:2].sum(0)
        total = images[0] + images[1]
        return float(norm(both - total)) > _NONLINEAR * float(norm(total))


def check_size(images: Tensor) -> None:
    """Raise if powers of the products would not be representable in float64; in a narrower dtype they are."""
    if images.dtype != torch.float64 or not images.numel():
        return
    least, most = images.aminmax()
    size = max(-float(least), float(most))
    if size and not _SIZES[0] < size < _SIZES[1]:
        raise ProbeError(
            f"products must have entries between {_SIZES[0]:g} and {_SIZES[1]:g} for their powers to be "
            f"representable, got a largest one of {size:.2g}: multiply the loss or the matrix by {1 / size:.0e}"
        )
