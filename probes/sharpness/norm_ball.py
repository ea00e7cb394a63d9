"""Norm-ball sharpness: the largest curvature d'Hd over the unit ball of an optimizer's own norm."""

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
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.operators.quadratic_form import form_rounding
from lossscope.probes.statistics.estimate import Estimate, exact_estimate
from lossscope.probes.sums import row_dots

__all__ = ["Norm", "NormSharpness", "dual_norm", "norm_sharpness"]

Norm = Literal["sign", "spectral"]
_Parts: TypeAlias = list[tuple[int, ...]]  # shapes of the pieces of the flat vector: (m, n) matrix, (n,) vector


@dataclass(frozen=True)
class _Ball:
    """Unit ball of a norm: the pieces of the flat vector, and the radius of each."""

    norm: Norm
    parts: _Parts
    radii: tuple[float, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each piece."""
        return [math.prod(shape) for shape in self.parts]

    @property
    def squared_radius(self) -> float:
        """Largest squared Euclidean length in the ball."""
        ends = self.sizes if self.norm == "sign" else [min(s) if len(s) == 2 else 1 for s in self.parts]
        return math.fsum(radius**2 * end for radius, end in zip(self.radii, ends, strict=True))

    def steepest(self, columns: Tensor) -> Tensor:
        """Return for each column `(n, k)` the point of the ball with the largest inner product with it."""
        rows = torch.split(columns.mT, self.sizes, 1)
        ends = [self._end(row, shape) for row, shape in zip(rows, self.parts, strict=True)]
        return torch.cat([radius * end for radius, end in zip(self.radii, ends, strict=True)], 1).mT

    def _end(self, row: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the point of length 1 of one piece, for each row `(k, size)`."""
        if self.norm == "sign":
            return torch.where(row >= 0, 1.0, -1.0).to(row.dtype)
        return _polar(row.reshape(len(row), *shape)).reshape(len(row), -1)


@dataclass(frozen=True)
class NormSharpness:
    """Sharpness in a norm, with the dual norm of the gradient that it is compared with."""

    norm: Norm
    sharpness: Estimate  # max d'Hd over |d| <= 1, a lower bound
    dual_norm: Estimate  # |g|_*, the slope of the steepest step of length 1; nan for an operator without objective
    ratio: Estimate  # sharpness / |g|_*, compared with 2/lr for steps of fixed length; nan if dual_norm is
    restarts: tuple[float, ...]  # value reached by each start, descending
    direction: Tensor  # (n,) float64, the d that attains the value


def norm_sharpness(
    target: Objective | SymmetricOperator,
    norm: Norm = "spectral",
    *,
    shapes: Sequence[Sequence[int]] | None = None,
    radii: Sequence[float] | None = None,
    lambda_max: float = math.nan,
    restarts: int = 10,
    rel: float = 1e-3,
    max_products: int = 200,
    seed: int = 0,
) -> NormSharpness:
    r"""Maximize the curvature d'Hd over the unit ball of an optimizer's norm.

    `sign`: maximum norm, that of sign descent and Lion. `spectral`: the maximum over the layers of the spectral norm,
    that of Muon; a tensor with more than two dimensions is reshaped to the matrix `(first, -1)`, a tensor with fewer is
    measured in the Euclidean norm. In the Euclidean norm the result would be lambda_max. An optimizer whose step of a
    layer is longer than lr by a factor r (Muon: the square root of max(1, rows / columns), times the multiplier of its
    learning rate) has the norm max over the layers of |d_l| / r_l: pass these factors as `radii`.

    Maximizing a quadratic form over such a ball is hard (for `sign` as hard as max-cut), so the best of several local
    ascents is returned. Each iteration finds the point y of the ball with the largest :math:`\langle Hd, y\rangle` (the
    signs; the polar factor of each layer by an exact SVD) and then the best point of the segment from d to y, which
    needs no further product since H d and H y are known. For a positive semi-definite H that point is y; the value
    never decreases.

    Args:
        target: The loss, or its Hessian or another operator `(n, n)`.
        norm: `sign` or `spectral`.
        shapes: Shapes of the tensors in the flat vector; required for `spectral` with an operator that has no
            objective.
        radii: Radius of the ball in each tensor, one for each of the shapes (of an objective: in the order of its
            names), above 0. Default: 1 for all.
        lambda_max: Upper bound of the largest eigenvalue, if known. Multiplied by the largest squared Euclidean length
            in the ball it gives the (loose) upper end of the estimate.
        restarts: Number of ascents from random points, at least 1.
        rel: An ascent stops when one iteration increases the value by at most this fraction.
        max_products: Budget of operator products over all ascents, at least two for each.
        seed: Seed of the starting points.

    Returns:
        The best value as a lower bound; `samples` counts ascents, and `converged` is True if the best one had stopped
        by `rel`.

    Raises:
        ProbeError: An argument is out of range, or a product is not finite.

    Source:
        R. Islamov et al. (2026), Non-Euclidean gradient descent operates at the edge of stability, arXiv:2603.05002;
        the ascent is the method of M. Frank and P. Wolfe (1956) with an exact line search.
    """
    operator = hessian(target) if isinstance(target, Objective) else target
    _check(norm, restarts, rel, max_products)
    ball = _ball(operator, norm, shapes, radii)
    begun, before = time.perf_counter(), operator.products
    with operator.cached():
        best, found, ended = _ascents(operator, ball, restarts, rel, max_products, seed)
    values = row_dots(best.mT, found.mT)
    winner = int(values.argmax())
    highest = lambda_max * ball.squared_radius
    reached, direction = _reached(operator, best[:, winner], found[:, winner], float(values[winner]), highest, rel)
    sharpness = replace(
        reached,
        samples=restarts,
        products=operator.products - before,
        seconds=time.perf_counter() - begun,
        converged=reached.converged and bool(ended[winner]),
    )
    slope = math.nan
    if isinstance(operator, ObjectiveOperator) and operator.is_hessian:
        slope = _dual(operator.objective.gradient(), ball)
    return NormSharpness(
        norm,
        sharpness,
        exact_estimate(slope),
        _over(sharpness, slope),
        tuple(sorted((float(v) for v in values), reverse=True)),
        direction,
    )


def dual_norm(
    gradient: Tensor, norm: Norm, shapes: Sequence[Sequence[int]], radii: Sequence[float] | None = None
) -> float:
    """Compute the dual norm of a gradient: its largest inner product with a step of length 1.

    For `sign` it is the sum of absolute values; for `spectral` the sum over the layers of nuclear norms, and of
    Euclidean norms for vectors; with radii, each tensor's part of these sums is multiplied by its radius.

    Args:
        gradient: `(n,)`.
        norm: `sign` or `spectral`.
        shapes: Shapes of the tensors in the flat vector.
        radii: Radius of the ball in each tensor, above 0. Default: 1 for all.

    Returns:
        The dual norm.

    Raises:
        ProbeError: The shapes do not add up to n entries, or the radii are not one for each of them, above 0.

    Example:
        >>> dual_norm(torch.tensor([3.0, 0.0, 0.0, -4.0]), "spectral", [(2, 2)])
        7.0
    """
    parts = _fitting(shapes, gradient.numel())
    return _dual(gradient, _Ball(norm, parts, _known(radii, len(parts))))


def _dual(gradient: Tensor, ball: _Ball) -> float:
    """Return the largest inner product of a gradient with a point of the ball."""
    columns = gradient.detach().double().reshape(-1, 1)
    return float((columns * ball.steepest(columns)).sum())


def _ascents(
    operator: SymmetricOperator, ball: _Ball, restarts: int, rel: float, max_products: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the points `(n, k)` reached by the ascents, their products, and a mask of the ascents that stopped."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(operator.size, generator=generator, dtype=torch.float64) for _ in range(restarts)]
    D = ball.steepest(torch.stack(drawn, 1).to(operator.device))
    HD = (operator @ D).double()
    ended = torch.zeros(restarts, dtype=torch.bool, device=D.device)
    spent = restarts
    while spent + (going := int((~ended).sum())) <= max_products and going:
        d, Hd = D[:, ~ended], HD[:, ~ended]
        segment = ball.steepest(Hd) - d
        product = (operator @ segment).double()
        spent += going
        slope, curvature = (segment * Hd).sum(0), (segment * product).sum(0)
        # The form along the segment is a + 2 t slope + t^2 curvature, with slope >= 0 by the choice of its end.
        best = torch.where(curvature < 0, -slope / curvature, torch.ones_like(slope))
        t = torch.nan_to_num(best, nan=0.0).clamp(0.0, 1.0)
        old = (d * Hd).sum(0)
        rise = t * (2 * slope + t * curvature)
        D[:, ~ended], HD[:, ~ended] = d + t * segment, Hd + t * product
        ended[~ended] = rise <= rel * (old + rise).abs()
    return D, HD, ended


def _reached(
    operator: SymmetricOperator, direction: Tensor, product: Tensor, value: float, highest: float, rel: float
) -> tuple[Estimate, Tensor]:
    """Return the value of one ascent as a lower bound, and the point of the ball that attains it.

    Args:
        operator: The operator.
        direction: `(n,)`, the point that the ascent has reached.
        product: `(n,)`, its product.
        value: Its value d'Hd.
        highest: Upper bound of the values in the ball; not finite if it is unknown.
        rel: Rounding up to this fraction of the value is converged.
    """
    rounding = form_rounding(operator, direction, product)
    if value < 0:  # d = 0 is in the ball
        rounding, value, direction = max(value + rounding, 0.0), 0.0, torch.zeros_like(direction)
    low, high = max(value - rounding, 0.0), max(value, highest) if math.isfinite(highest) else math.nan
    return Estimate(value, math.nan, low, high, 1, "lower bound", converged=rounding <= rel * value), direction


def _polar(block: Tensor) -> Tensor:
    """Return the polar factor of each matrix `(k, m, n)`, or each vector `(k, n)` scaled to unit length."""
    if block.ndim == 2:
        return torch.nn.functional.normalize(block, dim=1, eps=torch.finfo(block.dtype).tiny)
    U, _, Vh = torch.linalg.svd(block, full_matrices=False)
    product: Tensor = U @ Vh
    return product


def _over(sharpness: Estimate, slope: float) -> Estimate:
    """Return the sharpness divided by the dual norm of the gradient."""
    if not slope > 0:
        return exact_estimate(math.nan)
    value, high = sharpness.value / slope, sharpness.high / slope
    return replace(sharpness, value=value, low=value, high=high)


def _ball(
    operator: SymmetricOperator, norm: Norm, shapes: Sequence[Sequence[int]] | None, radii: Sequence[float] | None
) -> _Ball:
    """Return the unit ball of a norm in the coordinates of an operator."""
    if shapes is None and isinstance(operator, ObjectiveOperator):
        shapes = [p.shape for p in operator.objective.vector.tensors()]
    if shapes is None and norm == "sign" and radii is None:
        shapes = [(operator.size,)]
    if shapes is None:
        which = f"norm={norm!r}" if radii is None else "radii"
        raise ProbeError(f"{which} of an operator without an objective requires shapes=[...] of its tensors")
    parts = _fitting(shapes, operator.size)
    return _Ball(norm, parts, _known(radii, len(parts)))


def _known(radii: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return the radii of the pieces; raise unless there is one for each, finite and above 0."""
    found = (1.0,) * count if radii is None else tuple(map(float, radii))
    if len(found) != count:
        raise ProbeError(f"radii must have one entry for each of the {count} tensors, got {len(found)}")
    if wrong := [radius for radius in found if not (math.isfinite(radius) and radius > 0)]:
        raise ProbeError(f"radii must be finite and above 0, got {wrong[0]:g}")
    return found


def _fitting(shapes: Sequence[Sequence[int]], size: int) -> _Parts:
    """Return the shapes reshaped to matrices and vectors; raise unless they add up to the size of the vector."""
    if (total := sum(math.prod(shape) for shape in shapes)) != size:
        raise ProbeError(f"shapes must have {size} entries in total, got {total}: pass those of all tensors in order")
    return [(shape[0], math.prod(shape[1:])) if len(shape) > 1 else (math.prod(shape),) for shape in shapes]


def _check(norm: str, restarts: int, rel: float, max_products: int) -> None:
    """Raise if an argument is out of range."""
    if norm not in get_args(Norm):
        raise ProbeError(f"norm must be one of {', '.join(map(repr, get_args(Norm)))}, got {norm!r}")
    if restarts < 1:
        raise ProbeError(f"restarts must be at least 1, got {restarts}")
    if not 0 < rel < 1:
        raise ProbeError(f"rel must be between 0 and 1, got {rel:g}")
    if max_products < 2 * restarts:
        raise ProbeError(f"max_products must be at least {2 * restarts} for {restarts} restarts, got {max_products}")
