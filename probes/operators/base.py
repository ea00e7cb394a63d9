"""Symmetric matrices given by their matrix-vector products."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.operators import random_vectors
from lossscope.probes.sums import all_finite, gram, row_dots, row_norms

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse.linalg import LinearOperator

__all__ = [
    "ASSUMED",
    "MARGIN",
    "ProductError",
    "ProductFacts",
    "Reference",
    "SymmetricOperator",
    "asymmetry",
    "from_matrix",
]

ASSUMED: Final = 100.0  # rounding units; 1 to 5 occur on ordinary networks that do not fit their data
MARGIN: Final = 4.0  # ratio of the largest error of any product to a measured one: up to 2.2 was found
_REFERENCE: Final = 1e-6  # error of a more precise reference, in units of the difference that it shows
_ASYMMETRY: Final = 1e3  # units in the last place of the largest entry by which a Gram matrix may be asymmetric


@dataclass(frozen=True)
class ProductFacts:
    """Properties of the products of an operator; they may change when products are taken."""

    method: str = "own product"  # name of the method that takes them
    unit: float = math.nan  # relative rounding unit; nan for that of the dtype
    unit_is_measured: bool = False  # True if `unit` is the measured error of a product
    gradient_seconds: float = math.nan  # time of one gradient; nan if unknown, or if there is no objective
    fallback_reason: str = ""  # why `method` replaced the default method; empty if it did not


@dataclass(frozen=True)
class Reference:
    """The same operator evaluated with another precision or by another method."""

    operator: SymmetricOperator
    # the error of a product, as a share of its difference from that of the reference: 1 for a more precise reference,
    # the ratio of the rounding units for a less precise one
    share: float = 1.0
    rounding: float = 0.0  # further error of the product with a unit vector, absolute


@dataclass(frozen=True)
class ProductError:
    """Measured errors of the products of an operator with some vectors."""

    difference: Tensor  # (n, k) float64, product of the reference minus product of the operator
    share: float  # see `Reference`
    slack: Tensor  # (k,) float64, further bounds: of the reference's own products where these are differences

    @property
    def norms(self) -> Tensor:
        """`(k,)` float64: 2-norms of the errors of the products."""
        return row_norms(self.difference.mT) * self.share + self.slack

    def forms(self, V: Tensor) -> Tensor:
        r"""Return bounds of the errors of :math:`v^\top A v`, `(k,)` float64, for the vectors `(n, k)` multiplied."""
        sizes = row_norms(V.mT) * row_norms(self.difference.mT)
        if self.share < 1:
            return MARGIN * self.share * sizes + self.slack * row_norms(V.mT)
        return row_dots(self.difference.mT, V.mT).abs() + _REFERENCE * sizes + self.slack * row_norms(V.mT)


class SymmetricOperator:
    """A symmetric `(n, n)` matrix A as `operator @ V`, for V of shape `(n,)` or `(n, k)`.

    Algorithms take such an operator and know no model. Make one with `from_matrix`, or from any product of your own;
    `hessian`, `gauss_newton` and `fisher` return the subclass `ObjectiveOperator`.

    Args:
        size: `n`.
        product: `(n, k) -> (n, k)`; linear, symmetric and deterministic. It may modify its argument.
        dtype: Dtype of the products.
        device: Device of the products.
        cached: Returns a context inside which the product may cache what it can reuse.
        facts: Returns the current properties of the products.
        reference: Returns the operator with which products are compared to measure their error, None if there is none.

    Attributes:
        products: Number of columns multiplied so far, those of the reference included.
        cached: Returns a context inside which products share what can be cached.

    Raises:
        ProbeError: the size is below 1, or the dtype is not real and floating.
    """

    _may_modify_argument: ClassVar[bool] = True

    def __init__(
        self,
        size: int,
        product: Callable[[Tensor], Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
        cached: Callable[[], AbstractContextManager[None]] = nullcontext,
        facts: Callable[[], ProductFacts] = ProductFacts,
        reference: Callable[[], Reference | None] = lambda: None,
    ) -> None:
        if size < 1:
            raise ProbeError(f"size must be at least 1, got {size}")
        if not dtype.is_floating_point:
            raise ProbeError(f"dtype must be real and floating, such as torch.float32, got {dtype}")
        self.size = size
        self.length = size  # entries of a vector in this process; fewer where vectors are sharded
        self.processes = 1  # number of processes that measure together
        self.dtype = dtype
        self.device = device
        self.products = 0  # columns multiplied so far
        self.cached = cached
        self.undefined_hint = "pass a product that is finite there"
        self._product = product
        self._facts = facts
        self.reference = reference

    def agreed(self, number: int) -> int:
        """Return the least of the numbers that the processes which measure together have; a collective call."""
        return number

    def normal(self, generator: torch.Generator) -> Tensor:
        """Draw a standard normal vector, in its dtype and on its device; of a sharded one the part of this process."""
        return random_vectors.normal(self.size, generator, self.dtype).to(self.device)

    def signs(self, generator: torch.Generator) -> Tensor:
        """Draw a vector of random signs, int8 on its device; of a sharded one the part of this process."""
        return random_vectors.signs(self.size, generator).to(self.device)

    @property
    def asymmetry_hint(self) -> str:
        """Advice that an algorithm gives if it finds the matrix asymmetric."""
        return "pass a linear product that is deterministic, with <Av, w> = <v, Aw>"

    @property
    def method(self) -> str:
        """Name of the method that takes the products: `matrix`, `reverse`, ..."""
        return self._facts().method

    @property
    def unit(self) -> float:
        """Relative rounding unit of a product: that of the dtype, larger for finite differences."""
        unit = self._facts().unit
        return torch.finfo(self.dtype).eps if math.isnan(unit) else unit

    @property
    def assumed_error(self) -> float:
        """Error of a product, relative to the largest absolute eigenvalue, where it cannot be measured.

        It is 100 rounding units; four units where the method has measured its own unit, as differences have.
        """
        return (MARGIN if self._facts().unit_is_measured else ASSUMED) * self.unit

    def product_error(self, V: Tensor, images: Tensor) -> ProductError | None:
        """Measure the error of products that were taken, by taking them once more in another precision.

        Rounding errors are larger than the rounding unit where terms cancel, such as p (1 - p) in a classifier that
        fits its data, so they cannot be known without a comparison. The products of an objective are compared with
        those of its copy in float64, which cost about twice as much each; products that are in float64 already with
        float32, where all rounding errors are 5e8 times as large.

        Args:
            V: `(n, k)`, vectors.
            images: `(n, k)`, their products with the operator.

        Returns:
            The errors; None without a reference, or where it fails (a model with constants of another dtype, memory).
        """
        try:
            reference = self.reference()
            if reference is None:
                return None
            found = reference.operator @ V
        except Exception:  # a copy in another dtype may fail in any way, and then there is no comparison
            self.reference = lambda: None
            return None
        self.products += V.shape[1]
        facts, slack = reference.operator._facts(), torch.zeros(V.shape[1], dtype=torch.float64)
        if facts.unit_is_measured and reference.share == 1:  # it takes differences, for want of a second derivative
            slack = MARGIN * facts.unit * row_norms(found.mT).cpu()
        slack += reference.rounding * row_norms(V.mT).cpu()
        if reference.operator.dtype == self.dtype:  # what both lose when they are rounded to it
            slack += torch.finfo(self.dtype).eps / 2 * row_norms(images.mT).cpu()
        difference = found.double()
        difference -= images
        return ProductError(difference, reference.share, slack.to(difference.device))

    @property
    def gradient_seconds(self) -> float:
        """Time of one gradient, in which costs are reported; nan if unknown, or for a matrix without an objective."""
        return self._facts().gradient_seconds

    def __matmul__(self, V: Tensor) -> Tensor:
        """Return the product A V, in the operator's dtype and on its device.

        Args:
            V: `(n,)` or `(n, k)`, of any real dtype.

        Returns:
            A tensor of the shape of V.

        Raises:
            ProbeError: V is complex or of another shape, or the product is not finite or of another shape.
        """
        n = self.length
        if V.ndim not in (1, 2) or len(V) != n:
            raise ProbeError(f"V must have shape ({n},) or ({n}, k), got {tuple(V.shape)}")
        if V.is_complex():
            raise ProbeError(f"V must be real, got {V.dtype}: multiply V.real and V.imag separately")
        columns = V.detach().to(self.device, self.dtype).reshape(n, -1)
        found = self._product(columns.clone() if self._may_modify_argument else columns)
        if not isinstance(found, Tensor) or found.shape != columns.shape:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ProbeError(f"product must return a tensor of the shape {tuple(columns.shape)} it is given, got {got}")
        self.products += columns.shape[1]
        if not all_finite(found):
            found = self._finite(columns, found)
        return found.reshape(V.shape)

    def _finite(self, columns: Tensor, found: Tensor) -> Tensor:
        """Return a finite product in place of one that is not, or raise."""
        raise ProbeError(f"product {self.products} with the operator {self._defect(found)}")

    def _defect(self, found: Tensor) -> str:
        """Return the reason that a product is not finite, and what may help."""
        undefined = bool(found.isnan().any())
        where = "a second derivative of the model is undefined at these parameters (0 / 0, as of sinc or a norm at 0)"
        if undefined and self.dtype == torch.float64:
            return f"is not finite (nan): {where}; {self.undefined_hint}"
        if undefined:
            wider = f"or the curvature overflows {self.dtype}; {self.undefined_hint}, or try the model in float64"
            return f"is not finite (nan): {where}, {wider}"
        remedy = "divide the loss by a constant" if self.dtype == torch.float64 else "try the model in float64"
        return f"is not finite (inf): the curvature overflows {self.dtype} at these parameters; {remedy}"

    def likely_direction(self) -> Tensor | None:
        """Return a vector `(n,)` that is likely to lie near the top eigenvectors; None if none is known."""
        return None

    @property
    def lost_digits(self) -> float:
        """Relative error of products that is known without a measurement; 0 for a matrix."""
        return 0.0

    def to_scipy(self) -> LinearOperator:
        """Return the matrix as a `scipy.sparse.linalg.LinearOperator`, in float32 at least."""
        from scipy.sparse.linalg import LinearOperator

        def matmat(V: np.ndarray[Any, Any]) -> Any:
            return (self @ torch.as_tensor(V)).to(wide).cpu().numpy()

        wide = torch.promote_types(self.dtype, torch.float32)  # numpy has no bfloat16, and ARPACK no half precision
        number = torch.empty(0, dtype=wide).numpy().dtype
        shape = (self.size, self.size)
        return LinearOperator(shape, matvec=matmat, rmatvec=matmat, matmat=matmat, rmatmat=matmat, dtype=number)


def from_matrix(A: Tensor) -> SymmetricOperator:
    """Return a dense symmetric matrix as an operator, for tests of algorithms on known matrices.

    Args:
        A: `(n, n)`, real and floating, symmetric up to 1000 units in the last place of its largest entry.

    Returns:
        The operator of `(A + A') / 2`.

    Raises:
        ProbeError: A is not square, not floating, not finite or not symmetric.

    Example:
        >>> from_matrix(torch.diag(torch.tensor([3.0, 1.0]))) @ torch.tensor([1.0, 2.0])
        tensor([3., 2.])
    """
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not len(A) or not A.is_floating_point():
        raise ProbeError(f"A must be a real floating square matrix, got {A.dtype} of shape {tuple(A.shape)}")
    largest, difference = float(A.abs().max()), float((A - A.mT).abs().max())
    if not difference <= _ASYMMETRY * torch.finfo(A.dtype).eps * largest < float("inf"):
        raise ProbeError(
            f"A must be finite and symmetric, got one that differs from its transpose by {difference:g} where its "
            f"largest entry is {largest:g}: pass (A + A.mT) / 2 to use the symmetric part"
        )
    symmetric = (A.detach() + A.detach().mT) / 2
    facts = ProductFacts("matrix")
    return SymmetricOperator(len(A), symmetric.matmul, dtype=A.dtype, device=A.device, facts=lambda: facts)


def asymmetry(operator: SymmetricOperator, seed: int) -> float:
    r"""Estimate the relative asymmetry :math:`|\langle Av, w\rangle - \langle v, Aw\rangle| / (|Av| |w|)`.

    For a symmetric matrix it is a few rounding units of the product (`operator.unit`); for random v and w a matrix
    that is not symmetric shows its antisymmetric part times about :math:`1/\sqrt n`.

    Args:
        operator: `(n, n)`; two products are taken.
        seed: Seed of the two random vectors v and w.

    Returns:
        The difference relative to the larger of :math:`|Av||w|` and :math:`|v||Aw|`; 0 where both products are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(operator.size, 2, generator=generator, dtype=torch.float64).to(operator.device, operator.dtype)
    pair = pair.mT
    images = (operator @ pair.mT).mT
    scale = float((row_norms(images) * row_norms(pair).flip(0)).max())
    crossed = gram(images, pair)
    return abs(float(crossed[0, 1] - crossed[1, 0])) / scale if scale > 0 else 0.0
