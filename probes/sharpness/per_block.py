"""Curvature by module: the diagonal blocks of a matrix, measured one by one and held against the whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.restriction import restricted
from lossscope.probes.sharpness.module_table import MeasuredBlock, MeasuredWhole, ModuleTable, module_table
from lossscope.probes.spectrum.measure import measure_spectrum
from lossscope.probes.statistics.seeds import independent_seeds

__all__ = ["Grouping", "per_module"]

Grouping = Literal["tensor", "module"]
_ROOT: Final = "(root)"  # the module that is the model itself


def per_module(
    target: Objective | SymmetricOperator,
    *,
    by: Grouping = "tensor",
    rel: float = 0.01,
    max_products: int = 200,
    seed: int = 0,
) -> ModuleTable:
    r"""One row of curvature for each parameter tensor or module; the rows add up to the whole.

    Row `l` is of the diagonal block :math:`A_{ll}`: the curvature with all other parameters held where they are.

    * The trace of the whole is the sum of the traces of the blocks; nothing is left over.
    * :math:`\lVert A\rVert_F^2 = \sum_l \lVert A_{ll}\rVert_F^2 + \sum_{l \ne m} \lVert A_{lm}\rVert_F^2`: the share
      of the second sum is what a block-diagonal picture of the curvature leaves out.
    * The top eigenvalue is :math:`v^\top A v = \sum_l v_l^\top A_{ll} v_l` and a rest between the blocks.
    * `lambda_max` of a block is at most that of the whole, which is a maximum over more directions.

    Each block has its own random probes, so errors are independent and add in quadrature.

    Args:
        target: The loss, whose Hessian is then measured, or an operator of an objective: `hessian`,
            `gauss_newton` or `fisher`.
        by: `tensor`, a row for each parameter tensor, or `module`, a row for each module that owns parameters
            itself. Tied parameters count once, under their first name, and frozen ones not at all.
        rel: As in `measure_spectrum`, for each row and for the whole. Standard errors of shares of the squared norm are
            then 2 `rel` at the most, and much smaller as a rule.
        max_products: The budget of each row, and of the whole.
        seed: Of all random vectors.

    Returns:
        The table.

    Raises:
        ProbeError: the operator belongs to no objective, `by` is unknown, or `measure_spectrum` refuses an argument.

    Source:
        docs/measures/per_module.md, where the sums are derived.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> table = per_module(Objective(net, lambda m, x: m(x).square().mean(), [torch.eye(2)]))
        >>> [(row.name, round(row.trace.value, 6)) for row in table.rows], round(table.trace.value, 6)
        ([('weight', 2.0), ('bias', 2.0)], 4.0)
    """
    operator = hessian(target) if isinstance(target, Objective) else target
    objective = operator.objective
    if objective is None:
        raise ProbeError(
            "the operator belongs to no objective, so its coordinates have no names: "
            "pass an objective, or hessian(objective)"
        )
    groups = _groups(objective.names, by)
    begun = time.perf_counter()
    own, *others = independent_seeds(seed, 1 + len(groups))
    whole = _whole(operator, rel, max_products, own)
    blocks = []
    for (name, names), other in zip(groups.items(), others, strict=True):
        v = whole.top.vectors[objective.vector.indices(names).to(operator.device), 0]
        blocks.append(_block(name, names, restricted(operator, names), v.double(), rel, max_products, other))
    return module_table(whole, blocks, rel, time.perf_counter() - begun)


def _whole(operator: SymmetricOperator, rel: float, max_products: int, seed: int) -> MeasuredWhole:
    """The numbers of the whole; the second eigenpair says how sure the direction of the first is."""
    found = measure_spectrum(
        operator, top=2, rel=rel, max_products=max_products, quantities=("top", "frobenius"), seed=seed
    )
    assert found.top is not None
    assert found.frobenius is not None
    return MeasuredWhole(found.top, found.frobenius, found.products)


def _block(
    name: str,
    names: tuple[str, ...],
    block: SymmetricOperator,
    v: Tensor,
    rel: float,
    max_products: int,
    seed: int,
) -> MeasuredBlock:
    """The numbers of one block, and its product with the part of a vector that belongs to it."""
    quantities = ("top", "trace", "frobenius")
    found = measure_spectrum(block, top=1, rel=rel, max_products=max_products, quantities=quantities, seed=seed)
    along = (block @ v).double()
    assert found.top is not None
    assert found.trace is not None
    assert found.frobenius is not None
    return MeasuredBlock(
        name,
        names,
        block.size,
        found.trace,
        found.top.estimate(0),
        found.frobenius,
        float(v @ along),
        float(torch.linalg.vector_norm(along)),
        found.products + 1,
    )


def _groups(names: Sequence[str], by: str) -> dict[str, tuple[str, ...]]:
    """The rows by name, and the parameters of each."""
    if by not in get_args(Grouping):
        raise ProbeError(f"by={by!r} is unknown: use one of {', '.join(get_args(Grouping))}")
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        row = name if by == "tensor" else name.rpartition(".")[0] or _ROOT
        groups[row] = (*groups.get(row, ()), name)
    return groups
