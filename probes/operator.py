"""Symmetric matrices that are known by their products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective import BatchGradient, Objective

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse.linalg import LinearOperator

__all__ = ["SymmetricOperator", "from_matrix", "hessian", "scaled"]

_ASYMMETRY: Final = 1e3  # units in the last place of the largest entry that a Gram matrix may be off


class SymmetricOperator:
    """A symmetric `(n, n)` matrix A as `operator @ V`, for V of shape `(n,)` or `(n, k)`.

    Algorithms see this and no model. Make one with `from_matrix`, `hessian` or `scaled`, or from any
    product of your own.

    Args:
        size: `n`.
        product: `(n, k) -> (n, k)`; linear, symmetric and repeatable.
        dtype: The dtype of the products.
        device: Where they are taken.
        held: A context between whose ends the product may keep what it can reuse.
        hessian_of: The objective, where A is its Hessian.
    """

    def __init__(
        self,
        size: int,
        product: Callable[[Tensor], Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
        held: Callable[[], AbstractContextManager[None]] = nullcontext,
        hessian_of: Objective | None = None,
    ) -> None:
        self.size = size
        self.dtype = dtype
        self.device = device
        self.products = 0  # columns multiplied so far
        self.held = held
        self.hessian_of = hessian_of
        self._product = product

    def __matmul__(self, V: Tensor) -> Tensor:
        """The product A V, in the operator's dtype and on its device.

        Args:
            V: `(n,)` or `(n, k)`, of any real dtype.

        Returns:
            The same shape as V.

        Raises:
            ProbeError: the shape does not fit, or the product is not finite.
        """
        if V.ndim not in (1, 2) or len(V) != self.size:
            raise ProbeError(f"a tensor of shape {tuple(V.shape)} cannot be multiplied: need ({self.size},) or (n, k)")
        columns = V.detach().to(self.device, self.dtype).reshape(self.size, -1)
        found = self._product(columns)
        self.products += columns.shape[1]
        if not bool(torch.isfinite(found).all()):
            raise ProbeError(
                f"product {self.products} with the operator is not finite: the curvature overflows {self.dtype} "
                "at these parameters; try the model in float64"
            )
        return found.reshape(V.shape)

    def to_scipy(self) -> LinearOperator:
        """The same matrix as a `scipy.sparse.linalg.LinearOperator`, for its solvers."""
        from scipy.sparse.linalg import LinearOperator

        def matmat(V: np.ndarray[Any, Any]) -> Any:
            return (self @ torch.as_tensor(V)).cpu().numpy()

        number = torch.empty(0, dtype=self.dtype).numpy().dtype
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
    largest, asymmetry = float(A.abs().max()), float((A - A.mT).abs().max())
    if not asymmetry <= _ASYMMETRY * torch.finfo(A.dtype).eps * largest < float("inf"):
        raise ProbeError(
            f"A differs from its transpose by {asymmetry:g} where its largest entry is {largest:g}, need a finite "
            "symmetric matrix: pass (A + A.mT) / 2 if that is what you mean"
        )
    symmetric = (A.detach() + A.detach().mT) / 2
    return SymmetricOperator(len(A), symmetric.matmul, dtype=A.dtype, device=A.device)


def hessian(objective: Objective) -> SymmetricOperator:
    r"""The Hessian of an objective at the parameters the model has when a product is taken.

    A product is the derivative of :math:`\langle \nabla L, v\rangle` by a second backward pass
    (Pearlmutter's identity), exact up to rounding. The columns of a block share one forward and one
    first backward pass; with one batch, `held()` shares them between products too. What `held()` keeps
    belongs to the parameters at its start: move them only outside.

    Args:
        objective: The loss; its trainable parameters are the `n` coordinates.

    Returns:
        The operator. A parameter that the loss does not contain has a zero row.

    Source:
        B. Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6(1), 147-160.
    """
    product = _HessianProduct(objective)
    return SymmetricOperator(
        objective.size,
        product,
        dtype=objective.dtype,
        device=objective.device,
        held=product.held,
        hessian_of=objective,
    )


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
    if tuple(diagonal.shape) != (operator.size,) or not bool(torch.isfinite(diagonal).all()):
        raise ProbeError(f"the diagonal has shape {tuple(diagonal.shape)}, need {operator.size} finite numbers")
    d = diagonal.detach().to(operator.device, operator.dtype)[:, None]

    def product(V: Tensor) -> Tensor:
        return d * (operator @ (d * V))

    return SymmetricOperator(operator.size, product, dtype=operator.dtype, device=operator.device, held=operator.held)


class _HessianProduct:
    """H V by two backward passes, with the graph of a single batch kept between products on request."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._kept: BatchGradient | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context in which one graph serves all products, if there is one batch only."""
        if self._kept is not None:
            yield
            return
        with self._objective.evaluating():
            try:
                if len(self._objective.data.batches) == 1:
                    self._kept = next(self._objective.gradients(graph=True))
                yield
            finally:
                self._kept = None

    def __call__(self, V: Tensor) -> Tensor:
        """H V for V of shape `(n, k)`."""
        columns = [self._objective.vector.split(column) for column in V.unbind(1)]
        total = torch.zeros_like(V.mT, memory_format=torch.contiguous_format)  # (k, n)
        with self._objective.evaluating():
            for batch in [self._kept] if self._kept else self._objective.gradients(graph=True):
                for row, column in enumerate(columns):
                    last = self._kept is None and row == len(columns) - 1
                    total[row] += batch.weight * self._objective.vector.joined(second_derivative(batch, column, last))
        return total.mT


def second_derivative(batch: BatchGradient, direction: list[Tensor], last: bool) -> list[Tensor]:
    """The derivative of the batch's slope along a direction; the graph is freed if this is its `last` use."""
    pairs = [(g, d) for g, d in zip(batch.gradients, direction, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in batch.leaves]
    found = torch.autograd.grad(
        [g for g, _ in pairs],
        batch.leaves,
        [d for _, d in pairs],
        retain_graph=not last,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)
