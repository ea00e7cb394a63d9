"""Curvature by module: the diagonal blocks of a matrix, measured one by one and held against the whole."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, restricted
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.spectrum.measure import measure_spectrum
from lossscope.probes.spectrum.results import EigenPairs
from lossscope.probes.statistics.estimate import Estimate
from lossscope.probes.statistics.propagation import (
    balanced_sum_estimate,
    independent_seeds,
    linear_estimate,
    part_shares,
    square_estimate,
    sum_estimate,
)

__all__ = ["Grouping", "MeasuredBlock", "MeasuredWhole", "ModuleRow", "ModuleTable", "module_table", "per_module"]


@dataclass(frozen=True)
class ModuleRow:
    """One diagonal block: that of a parameter tensor, or of all the parameters that a module owns itself."""

    name: str
    parameters: tuple[str, ...]
    size: int
    trace: Estimate
    lambda_max: Estimate  # at most that of the whole
    frobenius: Estimate
    trace_share: Estimate  # of the trace of the whole: the shares add up to 1
    frobenius_share: Estimate  # |A_ll|_F^2 / |A|_F^2: with the cross share they add up to 1
    top_share: Estimate  # v_l' A_ll v_l / lambda_max, v the top eigenvector of the whole: likewise


@dataclass(frozen=True)
class ModuleTable:
    """The diagonal blocks of a matrix, and the whole made of them and of what lies between them."""

    rows: tuple[ModuleRow, ...]
    trace: Estimate  # the sum of the rows' traces
    lambda_max: Estimate
    frobenius: Estimate
    cross_share: Estimate  # 1 - sum |A_ll|_F^2 / |A|_F^2
    top_cross_share: Estimate  # 1 - sum v_l' A_ll v_l / lambda_max
    products: int  # with the whole and with blocks; one with a block is cheaper
    seconds: float

    @property
    def orbit_minimal_trace(self) -> Estimate:
        r"""The smallest trace that scaling the blocks against one another can reach.

        Scaling block `l` of the parameters by :math:`\alpha_l` divides its trace by :math:`\alpha_l^2`. Over all
        :math:`\prod \alpha_l = 1` the sum of the traces is smallest where they are all equal (the inequality of
        the means), and then :math:`\Lambda (\prod t_l)^{1/\Lambda}`. These scalings leave the function alone, and
        this number with it, where the blocks are the weights of a chain of :math:`\Lambda` layers
        without biases and norms, with activations between them that are homogeneous of degree one.

        Returns:
            The trace; a gap where the trace of a block is not positive.
        """
        return balanced_sum_estimate([row.trace for row in self.rows])


@dataclass(frozen=True)
class MeasuredWhole:
    """What is measured of the whole."""

    top: EigenPairs  # the first two, where there are two
    frobenius: Estimate
    products: int


@dataclass(frozen=True)
class MeasuredBlock:
    """What is measured of one diagonal block."""

    name: str
    parameters: tuple[str, ...]
    size: int
    trace: Estimate
    lambda_max: Estimate
    frobenius: Estimate
    part: float  # v_l' A_ll v_l, v the top eigenvector of the whole
    length: float  # |A_ll v_l|
    products: int


def module_table(whole: MeasuredWhole, blocks: Sequence[MeasuredBlock], rel: float, seconds: float) -> ModuleTable:
    """The table of what was measured, each block with its share.

    Args:
        whole: Of the whole.
        blocks: Of the diagonal blocks, each measured with random vectors of its own.
        rel: What the standard error of the whole trace is judged by, as in `measure_spectrum`.
        seconds: The time it took.

    Returns:
        The table.
    """
    traces = [block.trace for block in blocks]
    *frobenius_shares, cross_share = _frobenius_shares(whole.frobenius, blocks)
    *top_shares, top_cross_share = _top_shares(whole.top, blocks)
    shares = zip(part_shares(traces), frobenius_shares, top_shares, strict=True)
    rows = [
        ModuleRow(b.name, b.parameters, b.size, b.trace, b.lambda_max, b.frobenius, *three)
        for b, three in zip(blocks, shares, strict=True)
    ]
    trace = sum_estimate(traces)
    met = trace.stderr <= rel * max(abs(trace.value), whole.frobenius.value)
    return ModuleTable(
        tuple(rows),
        replace(trace, converged=met),
        _top(whole.top, blocks),
        whole.frobenius,
        cross_share,
        top_cross_share,
        whole.products + sum(block.products for block in blocks),
        seconds,
    )


def _top(whole: EigenPairs, blocks: Sequence[MeasuredBlock]) -> Estimate:
    """The top eigenvalue of the whole; a block with a larger one proves that it was missed."""
    found, most = whole.estimate(0), max(block.lambda_max.value for block in blocks)
    return replace(found, high=most, converged=False) if most > found.high else found


def _frobenius_shares(frobenius: Estimate, blocks: Sequence[MeasuredBlock]) -> list[Estimate]:
    """The share of each block in the squared norm, and last that of what lies between the blocks.

    The blocks are a part of the whole: where chance makes them the larger one, they are taken for all of it.
    """
    square = square_estimate(frobenius)
    parts = [square_estimate(block.frobenius) for block in blocks]
    inside = math.fsum(part.value for part in parts)
    total = max(square.value, inside) or math.nan  # there is nothing to share in a matrix of zeros
    shares = [
        linear_estimate(part.value / total, [(1 / total, part), (-part.value / total**2, square)]) for part in parts
    ]
    slopes = [(-1 / total, part) for part in parts]
    shares.append(linear_estimate(1 - inside / total, [*slopes, (inside / total**2, square)]))
    return [replace(share, low=max(share.low, 0.0), high=min(share.high, 1.0)) for share in shares]


def _top_shares(whole: EigenPairs, blocks: Sequence[MeasuredBlock]) -> list[Estimate]:
    r"""The share of each block in the top eigenvalue, and last that of what lies between the blocks.

    They are exact for the Ritz vector. If that is off by d, a form :math:`v^\top B v` is off by at most
    :math:`2 d |B v| + d^2 |B|`.
    """
    theta, off = float(whole.values[0]), _distance(whole)
    parts = [(block.part, 2 * off * block.length + off**2 * block.frobenius.high) for block in blocks]
    length, norm = math.hypot(*(block.length for block in blocks)), max(block.frobenius.high for block in blocks)
    parts.append((theta - math.fsum(part for part, _ in parts), 2 * off * length + off**2 * norm))
    scale = theta if theta > 0 else math.nan  # there is nothing to share where no eigenvalue is positive
    known = theta > 0 and off < 1 and bool(whole.converged[0])
    return [
        Estimate(
            part / scale,
            math.nan,
            (part - error) / scale,
            (part + error) / scale,
            0,
            "residual",
            residual=float(whole.residuals[0]),
            converged=known,
        )
        for part, error in parts
    ]


def _distance(whole: EigenPairs) -> float:
    """How far the top Ritz vector can be from an eigenvector, from its residual and the gap to the next value."""
    if len(whole.values) == 1:
        return 0.0
    gap = float(whole.values[0] - whole.values[1] - whole.residuals[1])
    sine = min(1.0, float(whole.residuals[0]) / gap) if gap > 0 else 1.0
    return math.sqrt(2 - 2 * math.sqrt(1 - sine**2))


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
