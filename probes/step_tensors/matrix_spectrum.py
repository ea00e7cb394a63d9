"""Functions of the singular values of one matrix: entropies, ranks, condition number and orthogonality defect."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from lossscope.probes.errors import ProbeError

__all__ = ["MatrixSpectrum", "gram_error", "stored_spectrum", "white_noise_entropy"]

_BLOCK: Final = 2**22  # entries of a matrix that are converted to float64 at a time


@dataclass(frozen=True, eq=False)
class MatrixSpectrum:
    """Singular values of one matrix, and the functions of them.

    All except `values`, `norm` and `error` are invariant under scaling the matrix, and under multiplication by an
    orthogonal matrix from either side. They are nan for a zero or non-finite matrix.
    """

    values: npt.NDArray[np.float64]  # (r,), descending, in the unit of the matrix
    shape: tuple[int, int]  # of the matrix; r = min(shape)
    method: str  # "gram", "map" or "scaled"
    error: float  # error bound of the values for the method, same unit

    @classmethod
    def from_values(cls, values: Iterable[float], shape: Sequence[int], method: str, error: float) -> MatrixSpectrum:
        """Build a spectrum from stored singular values.

        Args:
            values: `min(shape)` singular values, any order; nan for a matrix that was not finite.
            shape: Rows and columns of the matrix.
            method: Method that computed the values.
            error: Error bound of the values, in the same unit.

        Returns:
            The spectrum, with a read-only copy of the values.

        Raises:
            ProbeError: The number of values is not `min(shape)`, or one of them is negative.
        """
        array = np.array(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        if len(shape) != 2 or array.shape != (min(shape),):
            raise ProbeError(
                f"a matrix (m, n) has min(m, n) singular values, got {array.size} values for shape {tuple(shape)}"
            )
        if (array < 0).any():
            raise ProbeError(f"singular values must be at least 0, got {array.min():g}: do not pass eigenvalues")
        array = -np.sort(-array)
        array.flags.writeable = False
        return cls(array, (int(shape[0]), int(shape[1])), method, float(error))

    def entropy(self, kind: Literal["energy", "nuclear"] = "energy", *, normalized: bool = True) -> float:
        r"""Compute the entropy :math:`-\sum_i p_i \ln p_i` of the normalized singular values.

        It is 0 at rank one and :math:`\ln r` if all singular values are equal.

        Args:
            kind: `energy` is :math:`p_i = s_i^2 / \sum s^2`, `nuclear` is :math:`p_i = s_i / \sum s`.
            normalized: Divide by :math:`\ln r`, `r = min(m, n)`, which gives a value between 0 and 1.

        Returns:
            The entropy, in nats or as a fraction; nan for a zero matrix and, if normalized, for a vector
            (`r = 1`: 0 / 0).

        Raises:
            ProbeError: `kind` is unknown.

        Source:
            docs/measures/spectral_entropy.md; the energy form is the von Neumann entropy of MM'/tr MM'.

        Example:
            >>> spectrum = MatrixSpectrum.from_values([1, 1, 1, 1], (4, 4), "gram", 0.0)
            >>> round(spectrum.entropy(), 6), round(spectrum.entropy("nuclear", normalized=False), 6)
            (1.0, 1.386294)
        """
        if kind not in ("energy", "nuclear"):
            raise ProbeError(f"kind must be one of 'energy', 'nuclear', got {kind!r}")
        relative = self._relative()
        weights = relative**2 if kind == "energy" else relative
        shares = weights / weights.sum()
        if not np.isfinite(shares).all():
            return math.nan
        positive = shares[shares > 0]
        total = abs(float((positive * np.log(positive)).sum()))
        if not normalized:
            return total
        return total / math.log(len(shares)) if len(shares) > 1 else math.nan

    @property
    def norm(self) -> float:
        """Frobenius norm, the root of the sum of squared singular values; 0 for a zero matrix."""
        largest = float(self.values[0])
        return largest * math.sqrt(self.stable_rank) if largest != 0 else 0.0

    @property
    def stable_rank(self) -> float:
        r"""Stable rank :math:`\lVert M\rVert_F^2 / \lVert M\rVert_2^2`, between 1 and r; nan for a zero matrix."""
        return float((self._relative() ** 2).sum())

    @property
    def effective_rank(self) -> float:
        """Effective rank: exponential of the nuclear entropy in nats, between 1 and r; nan for a zero matrix."""
        return math.exp(self.entropy("nuclear", normalized=False))

    @property
    def condition(self) -> float:
        """Condition number; inf if the smallest singular value is not above `error`, nan for a zero matrix."""
        largest, smallest = float(self.values[0]), float(self.values[-1])
        if not largest > 0:
            return math.nan
        return largest / smallest if smallest > self.error else math.inf

    @property
    def orthogonality_defect(self) -> float:
        r"""Orthogonality defect :math:`\lVert\tilde D\tilde D^\top - I\rVert_F / \sqrt r` on the smaller side.

        :math:`\tilde D` is the matrix scaled to :math:`\lVert\tilde D\rVert_F = \sqrt r`, so it is 0 if all singular
        values are equal and :math:`\sqrt{r - 1}` at rank one; nan for a zero matrix.
        """
        energy = self._relative() ** 2
        return float(np.sqrt(((energy / energy.mean() - 1) ** 2).mean()))

    @property
    def excess_order(self) -> float:
        """Energy entropy of white noise of this shape minus that of the matrix, nats; nan for a zero matrix."""
        return white_noise_entropy(self.shape) - self.entropy("energy", normalized=False)

    def _relative(self) -> npt.NDArray[np.float64]:
        """Return the singular values over the largest, whose squares cannot overflow; nan for a zero matrix."""
        return self.values / (self.values[0] if self.values[0] > 0 else math.nan)


def white_noise_entropy(shape: Sequence[int]) -> float:
    r"""Return the mean energy entropy of a matrix of real white noise, :math:`\ln m - (m + 1) / (2n)`, `m <= n`.

    It is the second-order expansion around equal shares, with the mean purity (m + n + 1) / (mn + 2).

    Args:
        shape: Rows and columns, in any order.

    Returns:
        Nats, accurate to 0.001 from 64 x 64 on.

    Source:
        Page (1993), Phys. Rev. Lett. 71, 1291 has m / (2n), for complex entries.
    """
    m, n = min(shape), max(shape)
    return math.log(m) - (m + 1) / (2 * n)


def gram_error(values: npt.NDArray[np.float64]) -> float:
    r"""Return the error bound :math:`\sqrt{r\,u}\,\sigma_{\max}` of singular values computed from a Gram matrix.

    Rounding (`u = 2.2e-16`) changes the eigenvalues of the Gram matrix by a small multiple of
    :math:`u\,\sigma_{\max}^2`; after the root this is :math:`\sqrt u \approx 1.5 \cdot 10^{-8}` if the true value is
    zero. Large singular values are accurate to 1e-13; only those near the bound are this uncertain.

    Args:
        values: `(r,)` singular values.

    Returns:
        The bound, in the unit of the values; nan where they are nan.
    """
    return float(math.sqrt(len(values) * np.finfo(np.float64).eps) * values.max())


def stored_spectrum(matrix: npt.NDArray[np.floating]) -> MatrixSpectrum:
    """Compute the singular spectrum of a matrix on the host, without torch, as `singular_spectrum` does.

    The float64 Gram matrix is added up over blocks of rows, so that beside the matrix only one block is in float64.

    Args:
        matrix: `(m, n)`, real; a file that is mapped into memory is read twice.

    Returns:
        The spectrum, `min(m, n)` values.

    Raises:
        ProbeError: The array is not 2-D, is empty, or has an entry that is not finite.

    Example:
        >>> stored_spectrum(np.diag([2.0, 1.0])).values.tolist()
        [2.0, 1.0]
    """
    if matrix.ndim != 2 or not matrix.size:
        raise ProbeError(f"matrix must be 2-D and have entries, got shape {matrix.shape}: flatten it to (size0, -1)")
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    step = max(1, _BLOCK // tall.shape[1])
    blocks = [slice(at, at + step) for at in range(0, len(tall), step)]
    largest = max(float(np.abs(tall[rows]).max()) for rows in blocks)
    if not math.isfinite(largest) or any(not np.isfinite(tall[rows]).all() for rows in blocks):
        raise ProbeError(f"all entries of the matrix must be finite, and in shape {matrix.shape} some are not")
    gram = np.zeros((tall.shape[1],) * 2)
    for rows in blocks:
        block = tall[rows].astype(np.float64) / (largest or 1.0)
        gram += block.T @ block
    values = np.sqrt(np.linalg.eigvalsh(gram).clip(0)) * largest
    return MatrixSpectrum.from_values(values, matrix.shape, "gram", gram_error(values))
