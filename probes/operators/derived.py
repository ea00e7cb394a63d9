"""Operators made of another operator: in scaled coordinates, in an optimizer's metric, of some parameters only."""

from __future__ import annotations

from collections.abc import Collection
from typing import overload

from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import Reference, SymmetricOperator
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.sums import all_finite

__all__ = ["preconditioned", "restricted", "scaled"]


@overload
def scaled(operator: ObjectiveOperator, diagonal: Tensor) -> ObjectiveOperator: ...
@overload
def scaled(operator: SymmetricOperator, diagonal: Tensor) -> SymmetricOperator: ...
def scaled(operator: SymmetricOperator, diagonal: Tensor) -> SymmetricOperator:
    """Return the operator D A D with a diagonal D: A in coordinates measured in units of `diagonal`.

    Args:
        operator: A, `(n, n)`; its `products` keep counting.
        diagonal: `(n,)`, the diagonal of D.

    Returns:
        The operator D A D; an `ObjectiveOperator` if A is one.

    Raises:
        ProbeError: the diagonal has another length, or is not finite.
    """
    _check_diagonal(operator, diagonal)
    if not all_finite(diagonal):
        count = int((~diagonal.isfinite()).sum())
        raise ProbeError(f"diagonal must be finite, got {count} of {operator.size} entries that are not")
    d = diagonal.detach().to(operator.device, operator.dtype)[:, None]

    def reference() -> Reference | None:
        found = operator.reference()
        if found is None:
            return None
        return Reference(scaled(found.operator, d[:, 0]), found.share, found.rounding * float(d.abs().max()) ** 2)

    def product(V: Tensor) -> Tensor:
        return d * (operator @ (d * V))

    if not isinstance(operator, ObjectiveOperator):
        return SymmetricOperator(
            operator.size,
            product,
            dtype=operator.dtype,
            device=operator.device,
            cached=operator.cached,
            facts=operator._facts,
            reference=reference,
        )
    whole, vector = operator, operator.objective.vector

    def block(names: tuple[str, ...]) -> ObjectiveOperator:
        return scaled(whole.restrict(names), d[vector.indices(names).to(d.device), 0])

    found = ObjectiveOperator(
        operator.objective,
        product,
        restrict=block,
        cached=operator.cached,
        facts=operator._facts,
        reference=reference,
    )
    found._unscaled = operator
    return found


@overload
def preconditioned(operator: ObjectiveOperator, diagonal: Tensor) -> ObjectiveOperator: ...
@overload
def preconditioned(operator: SymmetricOperator, diagonal: Tensor) -> SymmetricOperator: ...
def preconditioned(operator: SymmetricOperator, diagonal: Tensor) -> SymmetricOperator:
    r"""Return :math:`P^{-1/2} A P^{-1/2}` with :math:`P = \mathrm{diag}(p)`: A in the metric of an optimizer.

    It has the eigenvalues of :math:`P^{-1} A`, which decide the stability of :math:`\theta \to \theta - \eta P^{-1} g`
    as those of A decide that of gradient descent.

    Args:
        operator: A, `(n, n)`; its `products` keep counting.
        diagonal: `(n,)`, p, all positive: for Adam the bias-corrected :math:`\sqrt{\hat v} + \epsilon`.

    Returns:
        The operator; an `ObjectiveOperator` if A is one.

    Raises:
        ProbeError: the diagonal has another length, or an entry is not finite or not positive.

    Source:
        J. Cohen et al. (2022), Adaptive gradient methods at the edge of stability, arXiv:2207.14484.
    """
    _check_diagonal(operator, diagonal)
    if not (all_finite(diagonal) and float(least := diagonal.min()) > 0):
        got = "entries that are not finite" if not all_finite(diagonal) else f"a smallest entry of {float(least):g}"
        raise ProbeError(f"diagonal must be finite and positive, got {got}: add the optimizer's epsilon")
    return scaled(operator, diagonal.detach().double().rsqrt())


def restricted(operator: SymmetricOperator, names: Collection[str]) -> ObjectiveOperator:
    """Return the diagonal block of an operator for some of the parameters of its objective.

    The other parameters are constants, so no derivative with respect to them is taken: a product costs less than one
    with the whole matrix, and only a small fraction of it for a layer near the output.

    Args:
        operator: An operator of `hessian`, `gauss_newton` or `fisher`, also `scaled` or `preconditioned`.
        names: Names of parameters, some of `operator.names`.

    Returns:
        The block, an operator whose size is the number of entries of these parameters; it counts its own products.

    Raises:
        ProbeError: a name is unknown, `names` is empty, or the operator has no objective.
    """
    if not isinstance(operator, ObjectiveOperator):
        raise ProbeError(
            f"operator must have an objective whose parameters have names, got one without ({operator.method}): use "
            "hessian, gauss_newton or fisher of an objective"
        )
    return operator.restrict(operator.objective.vector.known(names))


def _check_diagonal(operator: SymmetricOperator, diagonal: Tensor) -> None:
    """Raise if the diagonal does not have one entry per coordinate."""
    if tuple(diagonal.shape) != (operator.size,):
        raise ProbeError(f"diagonal must have shape ({operator.size},), got {tuple(diagonal.shape)}")
