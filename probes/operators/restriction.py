"""The diagonal block of some of the parameters of an operator."""

from __future__ import annotations

from collections.abc import Collection

from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator

__all__ = ["restricted"]


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
