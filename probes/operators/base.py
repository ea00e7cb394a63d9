"""Symmetric matrices that are known by their products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse.linalg import LinearOperator

    from lossscope.probes.operators.product_choice import Choice

__all__ = ["ProductFacts", "SymmetricOperator", "asymmetry", "from_matrix", "preconditioned", "restricted", "scaled"]

_ASYMMETRY: Final = 1e3  # units in the last place of the largest entry that a Gram matrix may be off


@dataclass(frozen=True)
class ProductFacts:
    """What is known of the products of an operator."""

    method: str = "own product"  # what takes them
    unit: float = math.nan  # their relative rounding unit; nan for that of the dtype
    width: int = 1  # block width that is cheapest per column, as far as known
    gradient_seconds: float = math.nan  # time of one gradient, as seen when a graph was built
    choice: Choice | None = None  # why it is this method, where several were offered


class SymmetricOperator:
    """A symmetric `(n, n)` matrix A as `operator @ V`, for V of shape `(n,)` or `(n, k)`.

    Algorithms see this and no model. Make one with `from_matrix`, `hessian`, `gauss_newton`, `fisher`, `restricted`,
    `scaled` or `preconditioned`, or from any product of your own.

    Args:
        size: `n`.
        product: `(n, k) -> (n, k)`; linear, symmetric and repeatable. It may write into what it is given.
        dtype: The dtype of the products.
        device: Where they are taken.
        cached: A context between whose ends the product may keep what it can reuse; it is told how many products the
            caller expects to take, or None.
        facts: What is known of the products at the moment.
        objective: The objective whose parameters are the coordinates, if there is one.
        hessian_of: The objective, where A is its Hessian.
        restrict: The diagonal block of some of the objective's parameters, see `restricted`.

    Raises:
        ProbeError: the size is below 1, or the dtype is not real and floating.
    """

    def __init__(
        self,
        size: int,
        product: Callable[[Tensor], Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
        cached: Callable[[int | None], AbstractContextManager[None]] | None = None,
        facts: Callable[[], ProductFacts] = ProductFacts,
        objective: Objective | None = None,
        hessian_of: Objective | None = None,
        restrict: Callable[[tuple[str, ...]], SymmetricOperator] | None = None,
    ) -> None:
        if size < 1:
            raise ProbeError(f"an operator of size {size} has no spectrum, need at least 1")
        if not dtype.is_floating_point:
            raise ProbeError(f"an operator of dtype {dtype} has no products here, need a real floating one: float32")
        self.size = size
        self.dtype = dtype
        self.device = device
        self.products = 0  # columns multiplied so far
        self.objective = objective
        self.hessian_of = hessian_of
        self.restrict = restrict
        self._product = product
        self._cached = cached
        self._facts = facts

    @property
    def facts(self) -> ProductFacts:
        """What is known of the products at the moment."""
        return self._facts()

    @property
    def method(self) -> str:
        """What takes the products: `matrix`, `reverse`, ..."""
        return self._facts().method

    @property
    def unit(self) -> float:
        """The relative rounding unit of a product: that of the dtype, larger for finite differences."""
        unit = self._facts().unit
        return torch.finfo(self.dtype).eps if math.isnan(unit) else unit

    @property
    def width(self) -> int:
        """The block width that is cheapest per column as far as known; 1 where nothing was measured."""
        return self._facts().width

    @property
    def gradient_seconds(self) -> float:
        """The time of one gradient as seen when a graph was built, nan where unknown."""
        return self._facts().gradient_seconds

    @property
    def choice(self) -> Choice | None:
        """Why `method` is what it is, None where there was nothing to choose or no product was taken yet."""
        return self._facts().choice

    def cached(self, expected: int | None = None) -> AbstractContextManager[None]:
        """A context between whose ends graphs are kept, as far as memory allows.

        Args:
            expected: How many products will be taken; from about 30 on, methods may be measured first.

        Returns:
            The context. What it keeps belongs to the parameters at its start: move them only outside.
        """
        return nullcontext() if self._cached is None else self._cached(expected)

    def __matmul__(self, V: Tensor) -> Tensor:
        """The product A V, in the operator's dtype and on its device.

        Args:
            V: `(n,)` or `(n, k)`, of any real dtype.

        Returns:
            The same shape as V.

        Raises:
            ProbeError: V is complex, its shape does not fit, or the product is not finite or of another shape.
        """
        if V.ndim not in (1, 2) or len(V) != self.size:
            raise ProbeError(f"a tensor of shape {tuple(V.shape)} cannot be multiplied: need ({self.size},) or (n, k)")
        if V.is_complex():
            raise ProbeError(f"a tensor of {V.dtype} cannot be multiplied, need a real one: take .real and .imag apart")
        columns = V.detach().to(self.device, self.dtype).reshape(self.size, -1)
        found = self._product(columns.clone() if self.objective is None else columns)  # a user's may write into it
        if not isinstance(found, Tensor) or found.shape != columns.shape:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ProbeError(f"the product of columns {tuple(columns.shape)} came back as {what}, need the same shape")
        self.products += columns.shape[1]
        if not _finite(found):
            raise ProbeError(
                f"product {self.products} with the operator is not finite: the curvature overflows {self.dtype} "
                "at these parameters; try the model in float64"
            )
        return found.reshape(V.shape)

    def to_scipy(self) -> LinearOperator:
        """The same matrix as a `scipy.sparse.linalg.LinearOperator`, for its solvers; float32 at least."""
        from scipy.sparse.linalg import LinearOperator

        def matmat(V: np.ndarray[Any, Any]) -> Any:
            return (self @ torch.as_tensor(V)).to(wide).cpu().numpy()

        wide = torch.promote_types(self.dtype, torch.float32)  # what numpy and its solvers know
        number = torch.empty(0, dtype=wide).numpy().dtype
        shape = (self.size, self.size)
        return LinearOperator(shape, matvec=matmat, rmatvec=matmat, matmat=matmat, rmatmat=matmat, dtype=number)


def from_matrix(A: Tensor) -> SymmetricOperator:
    """A dense symmetric matrix as an operator, so that every algorithm is tested without a network.

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
        raise ProbeError(f"A is {A.dtype} of shape {tuple(A.shape)}, need a real floating square matrix")
    largest, difference = float(A.abs().max()), float((A - A.mT).abs().max())
    if not difference <= _ASYMMETRY * torch.finfo(A.dtype).eps * largest < float("inf"):
        raise ProbeError(
            f"A differs from its transpose by {difference:g} where its largest entry is {largest:g}, need a finite "
            "symmetric matrix: pass (A + A.mT) / 2 if that is what you mean"
        )
    symmetric = (A.detach() + A.detach().mT) / 2
    facts = ProductFacts("matrix")
    return SymmetricOperator(len(A), symmetric.matmul, dtype=A.dtype, device=A.device, facts=lambda: facts)


def scaled(operator: SymmetricOperator, diagonal: Tensor) -> SymmetricOperator:
    """The operator D A D with a diagonal D: A in coordinates that are measured in units of `diagonal`.

    Args:
        operator: A, `(n, n)`; its `products` go on counting.
        diagonal: `(n,)`, the diagonal of D.

    Returns:
        The operator D A D.

    Raises:
        ProbeError: the diagonal has another length, or is not finite.
    """
    if tuple(diagonal.shape) != (operator.size,):
        raise ProbeError(f"the diagonal has shape {tuple(diagonal.shape)}, need {operator.size} finite numbers")
    if not _finite(diagonal):
        raise ProbeError(
            f"{int((~diagonal.isfinite()).sum())} of {operator.size} entries of the diagonal are not finite, need all"
        )
    d = diagonal.detach().to(operator.device, operator.dtype)[:, None]

    def product(V: Tensor) -> Tensor:
        return d * (operator @ (d * V))

    return SymmetricOperator(
        operator.size,
        product,
        dtype=operator.dtype,
        device=operator.device,
        cached=operator.cached,
        facts=lambda: operator.facts,
        objective=operator.objective,
        restrict=_scaled_block(operator, d[:, 0]),
    )


def preconditioned(operator: SymmetricOperator, diagonal: Tensor) -> SymmetricOperator:
    r"""The operator :math:`P^{-1/2} A P^{-1/2}` with :math:`P = \mathrm{diag}(p)`: A in an optimizer's own metric.

    It has the eigenvalues of :math:`P^{-1} A`, which decide the stability of :math:`\theta \to \theta - \eta P^{-1} g`
    as those of A decide that of gradient descent.

    Args:
        operator: A, `(n, n)`; its `products` go on counting.
        diagonal: `(n,)`, p, all above zero: for Adam the bias-corrected :math:`\sqrt{\hat v} + \epsilon`.

    Returns:
        The operator.

    Raises:
        ProbeError: the diagonal has another length, or an entry is not finite or not above zero.

    Source:
        J. Cohen et al. (2022), Adaptive gradient methods at the edge of stability, arXiv:2207.14484.
    """
    if tuple(diagonal.shape) != (operator.size,):
        raise ProbeError(f"the diagonal has shape {tuple(diagonal.shape)}, need {operator.size} positive numbers")
    if not (_finite(diagonal) and float(least := diagonal.min()) > 0):
        what = "is not finite" if not _finite(diagonal) else f"goes down to {float(least):g}"
        raise ProbeError(f"the diagonal {what}, need finite numbers above 0: add the optimizer's epsilon")
    return scaled(operator, diagonal.detach().double().rsqrt())


def asymmetry(operator: SymmetricOperator, seed: int) -> float:
    r"""How far an operator is from symmetric: :math:`|\langle Av, w\rangle - \langle v, Aw\rangle| / (|Av| |w|)`.

    For a symmetric matrix it is a few rounding units of the product (`operator.unit`); for v, w at random a
    matrix that is not symmetric shows its antisymmetric part times about :math:`1/\sqrt n`.

    Args:
        operator: `(n, n)`; two products are spent.
        seed: Of the two random vectors v and w.

    Returns:
        The difference, relative to the larger of :math:`|Av||w|` and :math:`|v||Aw|`; 0 where both products are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(operator.size, 2, generator=generator, dtype=torch.float64).to(operator.device, operator.dtype)
    image, pair = (operator @ pair).double(), pair.double()
    scale = float((torch.linalg.vector_norm(image, dim=0) * torch.linalg.vector_norm(pair.flip(1), dim=0)).max())
    return abs(float(image[:, 0] @ pair[:, 1] - pair[:, 0] @ image[:, 1])) / scale if scale > 0 else 0.0


def _scaled_block(operator: SymmetricOperator, d: Tensor) -> Callable[[tuple[str, ...]], SymmetricOperator] | None:
    """The blocks of D A D from those of A, if it has any."""
    objective, block = operator.objective, operator.restrict
    if objective is None or block is None:
        return None
    return lambda names: scaled(block(names), d[objective.vector.indices(names).to(d.device)])


def _finite(values: Tensor) -> bool:
    """Whether all are finite; as a rule by their sum, which cannot be finite otherwise."""
    return math.isfinite(float(values.detach().sum())) or bool(torch.isfinite(values).all())


def restricted(operator: SymmetricOperator, names: Collection[str]) -> SymmetricOperator:
    """The diagonal block of an operator that belongs to some of the parameters of its objective.

    The others stand where they are as constants, so no derivative by them is taken: a product costs less than one with
    the whole, down to a small part of it for a layer near the output.

    Args:
        operator: Of an objective: by `hessian`, `gauss_newton` or `fisher`, perhaps `scaled` or `preconditioned`.
        names: Names of parameters, some of `operator.objective.names`.

    Returns:
        The block, as an operator whose size is the number of entries of these parameters; it counts its own products.

    Raises:
        ProbeError: a name is unknown, there is none, or the operator belongs to no objective.
    """
    if operator.objective is None or operator.restrict is None:
        raise ProbeError(
            f"the operator ({operator.method}) belongs to no objective, so its entries have no names: use hessian, "
            "gauss_newton or fisher of an objective"
        )
    return operator.restrict(operator.objective.vector.known(names))
