"""Geometry-matched sharpness: the largest curvature within the unit ball of an optimizer's own norm."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["Norm", "NormSharpness", "dual_norm", "norm_sharpness"]

Norm = Literal["sign", "spectral"]
_Parts: TypeAlias = list[tuple[int, ...]]  # how the flat vector is cut: (m, n) a matrix, (n,) a vector


@dataclass(frozen=True)
class NormSharpness:
    """The sharpness of a norm, and what it is compared with."""

    norm: Norm
    sharpness: Estimate  # max d'Hd over |d| <= 1, bounded from below
    dual_norm: Estimate  # |g|_*, the slope of the steepest step of length 1; a gap for a bare operator
    ratio: Estimate  # sharpness / |g|_*, against 2/lr for steps of fixed length; a gap with it
    restarts: tuple[float, ...]  # what each start reached, descending
    direction: Tensor  # (n,) float64, the d that reaches the value


def norm_sharpness(
    target: Objective | SymmetricOperator,
    norm: Norm = "spectral",
    *,
    shapes: Sequence[Sequence[int]] | None = None,
    lambda_max: float = math.nan,
    restarts: int = 10,
    rel: float = 1e-3,
    max_products: int = 200,
    seed: int = 0,
) -> NormSharpness:
    r"""The largest curvature d'Hd of a step d of length 1, length measured as the optimizer measures it.

    `sign`: the largest entry of d, the norm of sign descent and Lion. `spectral`: the largest over the layers of the
    largest singular value, the norm of Muon; a tensor with more than two dimensions is the matrix `(first, -1)`, one
    with fewer is measured by its Euclidean length. In the Euclidean norm it would be lambda_max.

    The maximum of a quadratic form over such a ball is hard to find (for `sign` as hard as max-cut), so this
    is the best of several climbs. Each follows the power method for norms: y, the point of the ball with the
    largest :math:`\langle Hd, y\rangle` (the signs; the polar factor of each layer by an exact SVD), and then the best
    point of the segment from d to y, which needs no further product as H d and H y are known. For a positive
    semi-definite H that is y itself; a climb never goes down.

    Args:
        target: The loss, or its Hessian or another operator `(n, n)`.
        norm: `sign` or `spectral`.
        shapes: Of the tensors that the flat vector is made of, needed for `spectral` with an operator that has no
            objective.
        lambda_max: An upper bound of the largest eigenvalue, if known. Times the largest squared Euclidean length in
            the ball it is the upper end of the estimate; a loose one.
        restarts: Climbs from random points, at least 1.
        rel: A climb ends where it rises by at most `rel` of itself in one step.
        max_products: The budget of all climbs together, at least two products for each.
        seed: Of the starts.

    Returns:
        The best value as a lower bound; `samples` counts climbs, and `converged` says whether the best one had ended.

    Raises:
        ProbeError: an argument is out of its range, or a product is not finite.

    Source:
        R. Islamov et al. (2026), Non-Euclidean gradient descent operates at the edge of stability, arXiv:2603.05002;
        the climb is the method of M. Frank and P. Wolfe (1956) with an exact line search.
    """
    operator = hessian(target) if isinstance(target, Objective) else target
    _check(norm, restarts, rel, max_products)
    parts = _parts(operator, norm, shapes)
    begun, before = time.perf_counter(), operator.products
    with operator.cached(max_products):
        best, found, ended = _climbs(operator, norm, parts, restarts, rel, max_products, seed)
    values = torch.einsum("nk,nk->k", best, found)
    winner = int(values.argmax())
    value, direction = float(values[winner]), best[:, winner]
    if value < 0:  # d = 0 is in the ball
        value, direction = 0.0, torch.zeros_like(direction)
    sharpness = Estimate(
        value,
        math.nan,
        value,
        max(value, lambda_max * _squared_radius(norm, parts)) if math.isfinite(lambda_max) else math.nan,
        restarts,
        "lower bound",
        products=operator.products - before,
        seconds=time.perf_counter() - begun,
        converged=bool(ended[winner]),
    )
    slope = math.nan
    if operator.hessian_of is not None:
        slope = dual_norm(operator.hessian_of.gradient(), norm, parts)
    return NormSharpness(
        norm,
        sharpness,
        exact_estimate(slope),
        _over(sharpness, slope),
        tuple(sorted((float(v) for v in values), reverse=True)),
        direction,
    )


def dual_norm(gradient: Tensor, norm: Norm, shapes: Sequence[Sequence[int]]) -> float:
    """The dual norm of a gradient: its largest inner product with a step of length 1.

    For `sign` the sum of absolute values; for `spectral` the sum over the layers of nuclear norms, Euclidean lengths
    for vectors.

    Args:
        gradient: `(n,)`.
        norm: `sign` or `spectral`.
        shapes: Of the tensors that the flat vector is made of.

    Returns:
        The norm.

    Raises:
        ProbeError: the shapes do not fit.

    Example:
        >>> dual_norm(torch.tensor([3.0, 0.0, 0.0, -4.0]), "spectral", [(2, 2)])
        7.0
    """
    parts = _fitting(shapes, gradient.numel())
    columns = gradient.detach().double().reshape(-1, 1)
    return float((columns * _steepest(columns, norm, parts)).sum())


def _climbs(
    operator: SymmetricOperator, norm: Norm, parts: _Parts, restarts: int, rel: float, max_products: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The points `(n, k)` that the climbs reached, their products, and which of them had ended."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(operator.size, generator=generator, dtype=torch.float64) for _ in range(restarts)]
    D = _steepest(torch.stack(drawn, 1).to(operator.device), norm, parts)
    HD = (operator @ D).double()
    ended = torch.zeros(restarts, dtype=torch.bool, device=D.device)
    spent = restarts
    while spent + (going := int((~ended).sum())) <= max_products and going:
        d, Hd = D[:, ~ended], HD[:, ~ended]
        way = _steepest(Hd, norm, parts) - d
        bent = (operator @ way).double()
        spent += going
        slope, curvature = (way * Hd).sum(0), (way * bent).sum(0)
        # The form along the way is a + 2 t slope + t^2 curvature, with slope >= 0 by the choice of the end.
        best = torch.where(curvature < 0, -slope / curvature, torch.ones_like(slope))
        t = torch.nan_to_num(best, nan=0.0).clamp(0.0, 1.0)
        old = (d * Hd).sum(0)
        rise = t * (2 * slope + t * curvature)
        D[:, ~ended], HD[:, ~ended] = d + t * way, Hd + t * bent
        ended[~ended] = rise <= rel * (old + rise).abs()
    return D, HD, ended


def _steepest(columns: Tensor, norm: Norm, parts: _Parts) -> Tensor:
    """For each column `(n, k)` the point of the unit ball with the largest inner product with it."""
    if norm == "sign":
        return torch.where(columns >= 0, 1.0, -1.0).to(columns.dtype)
    rows = torch.split(columns.mT, [math.prod(shape) for shape in parts], 1)
    ends = [_polar(row.reshape(len(row), *shape)).reshape(len(row), -1) for row, shape in zip(rows, parts, strict=True)]
    return torch.cat(ends, 1).mT


def _polar(block: Tensor) -> Tensor:
    """The polar factor of each matrix `(k, m, n)`, or each vector `(k, n)` at unit length."""
    if block.ndim == 2:
        return torch.nn.functional.normalize(block, dim=1, eps=torch.finfo(block.dtype).tiny)
    U, _, Vh = torch.linalg.svd(block, full_matrices=False)
    product: Tensor = U @ Vh
    return product


def _squared_radius(norm: Norm, parts: _Parts) -> int:
    """The largest squared Euclidean length in the unit ball."""
    if norm == "sign":
        return sum(math.prod(shape) for shape in parts)
    return sum(min(shape) if len(shape) == 2 else 1 for shape in parts)


def _over(sharpness: Estimate, slope: float) -> Estimate:
    """The sharpness in units of the gradient's dual norm."""
    if not slope > 0:
        return exact_estimate(math.nan)
    value, high = sharpness.value / slope, sharpness.high / slope
    return replace(sharpness, value=value, low=value, high=high)


def _parts(operator: SymmetricOperator, norm: Norm, shapes: Sequence[Sequence[int]] | None) -> _Parts:
    """How the flat vector is cut."""
    if shapes is None and operator.objective is not None:
        shapes = [p.shape for p in operator.objective.vector.tensors()]
    if shapes is None and norm == "sign":
        shapes = [(operator.size,)]
    if shapes is None:
        raise ProbeError("norm='spectral' of an operator without an objective needs shapes=[...] of its tensors")
    return _fitting(shapes, operator.size)


def _fitting(shapes: Sequence[Sequence[int]], size: int) -> _Parts:
    """The shapes as matrices and vectors, once they are known to fill the vector."""
    if (total := sum(math.prod(shape) for shape in shapes)) != size:
        raise ProbeError(f"the shapes hold {total} numbers, need {size}: pass those of all tensors in order")
    return [(shape[0], math.prod(shape[1:])) if len(shape) > 1 else (math.prod(shape),) for shape in shapes]


def _check(norm: str, restarts: int, rel: float, max_products: int) -> None:
    """Refuse arguments out of their range."""
    if norm not in get_args(Norm):
        raise ProbeError(f"norm={norm!r} is unknown: use one of {', '.join(get_args(Norm))}")
    if restarts < 1:
        raise ProbeError(f"restarts={restarts} is too few, need at least 1")
    if not 0 < rel < 1:
        raise ProbeError(f"rel={rel:g} is out of range, need 0 < rel < 1")
    if max_products < 2 * restarts:
        raise ProbeError(f"max_products={max_products} is too few for {restarts} restarts, need {2 * restarts}")
