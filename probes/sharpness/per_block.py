"""Per-block curvature: the diagonal blocks of a Hessian, by parameter tensor or module, and their shares."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from torch import Tensor

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.derived import restricted
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.statistics.estimate import Estimate
from lossscope.probes.statistics.propagation import (
    balanced_sum_estimate,
    independent_seeds,
    linear_estimate,
    part_shares,
    square_estimate,
    sum_estimate,
)
from lossscope.probes.sums import dot, norm

__all__ = ["Grouping", "ModuleRow", "ModuleTable", "per_module"]

Grouping = Literal["tensor", "module"]
_ROOT: Final = "(root)"  # row name of the parameters that the model owns itself


@dataclass(frozen=True)
class ModuleRow:
    """Diagonal block of one parameter tensor, or of all the parameters that a module owns itself."""

    name: str
    parameters: tuple[str, ...]
    size: int
    trace: Estimate
    lambda_max: Estimate  # at most that of the whole
    frobenius: Estimate
    trace_share: Estimate  # trace over that of the whole: the shares add up to 1
    frobenius_share: Estimate  # |A_ll|_F^2 / |A|_F^2: with the cross share they add up to 1
    top_share: Estimate  # v_l' A_ll v_l / lambda_max, v the top eigenvector of the whole: with its cross share, 1


@dataclass(frozen=True)
class ModuleTable:
    """Diagonal blocks of a matrix, with the numbers of the whole and the shares of the off-diagonal blocks."""

    rows: tuple[ModuleRow, ...]
    trace: Estimate  # sum of the rows' traces
    lambda_max: Estimate
    frobenius: Estimate
    cross_share: Estimate  # 1 - sum |A_ll|_F^2 / |A|_F^2
    top_cross_share: Estimate  # 1 - sum v_l' A_ll v_l / lambda_max
    products: int  # with the whole and with blocks; a product with a block is cheaper
    seconds: float

    @property
    def orbit_minimal_trace(self) -> Estimate:
        r"""Return the smallest trace reachable by rescaling the blocks against one another.

        Scaling block `l` of the parameters by :math:`\alpha_l` divides its trace by :math:`\alpha_l^2`. Over all
        :math:`\prod \alpha_l = 1` the sum of the traces is smallest when they are all equal (inequality of arithmetic
        and geometric means), with the value :math:`\Lambda (\prod t_l)^{1/\Lambda}`. These scalings preserve the
        function, and therefore this number, if the blocks are the weights of a chain of :math:`\Lambda` layers without
        biases and norms, with activations between them that are homogeneous of degree one.

        Returns:
            The trace; nan if the trace of a block is not positive.
        """
        return balanced_sum_estimate([row.trace for row in self.rows])


@dataclass(frozen=True)
class _WholeMeasurement:
    """Measured numbers of the whole matrix."""

    top: EigenPairs  # the two largest, if n > 1
    frobenius: Estimate
    products: int


@dataclass(frozen=True)
class _BlockMeasurement:
    """Measured numbers of one diagonal block."""

    name: str
    parameters: tuple[str, ...]
    size: int
    trace: Estimate
    lambda_max: Estimate
    frobenius: Estimate
    part: float  # v_l' A_ll v_l, v the top eigenvector of the whole
    length: float  # |A_ll v_l|
    products: int


def _module_table(
    whole: _WholeMeasurement, blocks: Sequence[_BlockMeasurement], rel: float, seconds: float
) -> ModuleTable:
    """Return the table of the measurements, each block with its shares.

    Args:
        whole: Measurement of the whole.
        blocks: Measurements of the diagonal blocks, each with its own random vectors.
        rel: Relative tolerance for the standard error of the trace of the whole, as in `measure_spectrum`.
        seconds: Wall time of all measurements.

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
        replace(trace, converged=met, cause="" if met else trace.cause),
        _top(whole.top, blocks),
        whole.frobenius,
        cross_share,
        top_cross_share,
        whole.products + sum(block.products for block in blocks),
        seconds,
    )


def _top(whole: EigenPairs, blocks: Sequence[_BlockMeasurement]) -> Estimate:
    """Return the top eigenvalue of the whole; not converged if a block has a larger one, which proves a miss."""
    found, most = whole.estimate(0), max(block.lambda_max.value for block in blocks)
    return replace(found, high=most, converged=False) if most > found.high else found


def _frobenius_shares(frobenius: Estimate, blocks: Sequence[_BlockMeasurement]) -> list[Estimate]:
    """Return the share of each block in the squared norm, followed by the share of the off-diagonal blocks.

    The blocks are a part of the whole: if sampling error makes their sum the larger number, it replaces the whole.
    """
    square = square_estimate(frobenius)
    parts = [square_estimate(block.frobenius) for block in blocks]
    inside = math.fsum(part.value for part in parts)
    total = max(square.value, inside) or math.nan  # shares of a zero matrix are undefined
    shares = [
        linear_estimate(part.value / total, [(1 / total, part), (-part.value / total**2, square)]) for part in parts
    ]
    slopes = [(-1 / total, part) for part in parts]
    shares.append(linear_estimate(1 - inside / total, [*slopes, (inside / total**2, square)]))
    return [replace(share, low=max(share.low, 0.0), high=min(share.high, 1.0)) for share in shares]


def _top_shares(whole: EigenPairs, blocks: Sequence[_BlockMeasurement]) -> list[Estimate]:
    r"""Return the share of each block in the top eigenvalue, followed by the share of the off-diagonal blocks.

    They are exact for the Ritz vector. If its distance from the eigenvector is d, the error of a form
    :math:`v^\top B v` is at most :math:`2 d |B v| + d^2 |B|`.
    """
    theta, off = float(whole.values[0]), _distance(whole)
    parts = [(block.part, 2 * off * block.length + off**2 * block.frobenius.high) for block in blocks]
    length, norm = math.hypot(*(block.length for block in blocks)), max(block.frobenius.high for block in blocks)
    parts.append((theta - math.fsum(part for part, _ in parts), 2 * off * length + off**2 * norm))
    scale = theta if theta > 0 else math.nan  # shares are undefined if no eigenvalue is positive
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
            cause=whole.estimate(0).cause,
        )
        for part, error in parts
    ]


def _distance(whole: EigenPairs) -> float:
    """Bound the distance of the top Ritz vector from an eigenvector by its residual over the spectral gap."""
    if len(whole.values) == 1:
        return 0.0
    gap = float(whole.values[0] - whole.values[1] - whole.residuals[1])
    sine = min(1.0, float(whole.residuals[0]) / gap) if gap > 0 else 1.0
    return math.sqrt(2 - 2 * math.sqrt(1 - sine**2))


def per_module(
    target: Objective | SymmetricOperator,
    *,
    by: Grouping = "tensor",
    rel: float = 0.01,
    max_products: int = 200,
    seed: int = 0,
) -> ModuleTable:
    r"""Measure the diagonal blocks of the curvature, one row per parameter tensor or module.

    Row `l` is the diagonal block :math:`A_{ll}`: the curvature with all other parameters fixed.

    * The trace of the whole is the sum of the traces of the blocks.
    * :math:`\lVert A\rVert_F^2 = \sum_l \lVert A_{ll}\rVert_F^2 + \sum_{l \ne m} \lVert A_{lm}\rVert_F^2`: the share
      of the second sum is the part that a block-diagonal approximation neglects.
    * The top eigenvalue is :math:`v^\top A v = \sum_l v_l^\top A_{ll} v_l` plus the terms of the off-diagonal blocks.
    * `lambda_max` of a block is at most that of the whole, which is a maximum over more directions.

    Each block has its own random probes, so errors are independent and add in quadrature.

    Args:
        target: The loss, whose Hessian is then measured, or an operator of an objective: `hessian`,
            `gauss_newton` or `fisher`.
        by: `tensor`: one row per parameter tensor; `module`: one row per module that owns parameters itself. Tied
            parameters count once, under their first name; frozen parameters are excluded.
        rel: Relative tolerance as in `measure_spectrum`, for each row and for the whole. Standard errors of shares of
            the squared norm are then at most 2 `rel`, and usually much smaller.
        max_products: Budget of operator products of each row, and of the whole.
        seed: Seed of all random vectors.

    Returns:
        The table.

    Raises:
        ProbeError: The operator has no objective, `by` is unknown, or `measure_spectrum` rejects an argument.

    Source:
        docs/measures/per_module.md, where the sums are derived.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> table = per_module(Objective(net, lambda m, x: m(x).square().mean(), [torch.eye(2)]))
        >>> [(row.name, round(row.trace.value, 6)) for row in table.rows], round(table.trace.value, 6)
        ([('weight', 2.0), ('bias', 2.0)], 4.0)
    """
    operator = hessian(target) if isinstance(target, Objective) else target
    if not isinstance(operator, ObjectiveOperator):
        raise ProbeError(
            "per_module requires an operator of an objective, which names its coordinates: "
            "pass an objective, or hessian(objective)"
        )
    objective = operator.objective
    filled = [name for name in objective.names if len(objective.vector.indices([name]))]  # others have no block
    groups = _groups(filled, by)
    begun = time.perf_counter()
    own, *others = independent_seeds(seed, 1 + len(groups))
    whole = _whole(operator, rel, max_products, own)
    blocks = []
    for (name, names), other in zip(groups.items(), others, strict=True):
        v = whole.top.vectors[objective.vector.indices(names).to(operator.device), 0]
        blocks.append(_block(name, names, restricted(operator, names), v.double(), rel, max_products, other))
    return _module_table(whole, blocks, rel, time.perf_counter() - begun)


def _whole(operator: SymmetricOperator, rel: float, max_products: int, seed: int) -> _WholeMeasurement:
    """Measure the whole; the second eigenvalue bounds the error of the first eigenvector."""
    found = measure_spectrum(
        operator, top=2, rel=rel, max_products=max_products, quantities=("top", "frobenius"), seed=seed
    )
    assert found.top is not None
    assert found.frobenius is not None
    return _WholeMeasurement(found.top, found.frobenius, found.products)


def _block(
    name: str,
    names: tuple[str, ...],
    block: SymmetricOperator,
    v: Tensor,
    rel: float,
    max_products: int,
    seed: int,
) -> _BlockMeasurement:
    """Measure one block, and its product with the block's part v of the top eigenvector of the whole."""
    quantities = ("top", "trace", "frobenius")
    found = measure_spectrum(block, top=1, rel=rel, max_products=max_products, quantities=quantities, seed=seed)
    along = block @ v
    assert found.top is not None
    assert found.trace is not None
    assert found.frobenius is not None
    return _BlockMeasurement(
        name,
        names,
        block.size,
        found.trace,
        found.top.estimate(0),
        found.frobenius,
        float(dot(v, along)),
        float(norm(along)),
        found.products + 1,
    )


def _groups(names: Sequence[str], by: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the rows, with the parameters of each."""
    if by not in get_args(Grouping):
        raise ProbeError(f"by must be one of {', '.join(map(repr, get_args(Grouping)))}, got {by!r}")
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        row = name if by == "tensor" else name.rpartition(".")[0] or _ROOT
        groups[row] = (*groups.get(row, ()), name)
    return groups
