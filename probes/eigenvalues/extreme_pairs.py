"""Extreme eigenpairs: growing a Krylov space until both ends of the spectrum meet their bounds."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.eigenvalues.block_krylov import Array, BlockKrylov
from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.eigenvalues.ritz import Ritz, ritz
from lossscope.probes.eigenvalues.start_block import Space, StartBlock

__all__ = ["WHOLE", "cut", "eigenpairs", "grow", "measure_rounding", "restart_dimensions"]

WHOLE: Final = 32  # up to this size the space is grown to dimension n, where everything is exact
# dimensions beyond the requested pairs below which no end is ever enclosed, unless the space is invariant
_MORE: Final = 2
_LONG: Final = 24  # dimensions at which a space for one eigenpair is cut
_LONGER: Final = 4  # and more for each other pair
_SMALL: Final = 2**20  # entries of a basis that is not worth a cut
_KEPT: Final = 0.5  # share of the Ritz vectors that is kept
_OFTEN: Final = 24  # dimensions up to which the bounds are tested after each step, then after every second step


def grow(
    start: StartBlock[Space],
    *,
    top: int,
    bottom: int,
    rel: float,
    max_products: int,
    steps: int,
    dimensions: int | None = None,
    proof: bool = True,
) -> None:
    """Grow the space until both ends meet their bounds, or `max_products` are spent.

    Args:
        start: The space; it is grown in place.
        top: Number of pairs at the upper end.
        bottom: Number of pairs at the lower end.
        rel: The bound to reach, relative to the largest absolute Ritz value.
        max_products: Budget of products; `n` are always enough.
        steps: Block steps to take in any case, as far as the budget allows.
        dimensions: Dimensions at which the space is cut to its outer Ritz vectors and grows again, see
            `restart_dimensions`; None for never.
        proof: False if small residuals are enough, for which no end needs to be enclosed.
    """
    space = start.space
    met = _met if proof else _settled
    limit = max_products if dimensions is not None else min(space.size, max_products)
    least = limit if limit == space.size <= WHOLE else min(limit, top + bottom)
    if 0 < space.products < limit and met(ritz(space, start.random), top, bottom, rel):
        return
    while space.products < limit and space.dimension < space.size and not space.exhausted:
        left = limit - space.products
        if dimensions is not None and space.dimension >= dimensions and 0 < space.width <= left:
            cut(start, top, bottom)
        space.step(left)
        k = space.dimension
        early = space.width and (k < min(limit, least + _MORE * proof) or space.steps < steps)
        if k < least or early or (k > _OFTEN and space.steps % 2):
            continue
        if met(ritz(space, start.random), top, bottom, rel):
            return


def restart_dimensions(size: int, pairs: int) -> int:
    """Return the dimensions at which a space is cut that serves extreme eigenpairs alone.

    Args:
        size: `n`; bases of few entries are not worth a cut.
        pairs: Number of eigenpairs at both ends together.

    Returns:
        The number of dimensions.
    """
    return max(_LONG + _LONGER * (pairs - 1), _SMALL // size)


def cut(start: StartBlock[Space], top: int, bottom: int) -> None:
    """Cut the space to the outer half of its Ritz vectors, at each end in proportion to the pairs requested there.

    Args:
        start: The space; it is cut in place, and must not be invariant.
        top: Number of pairs at the upper end.
        bottom: Number of pairs at the lower end.
    """
    space, found = start.space, ritz(start.space, start.random)
    if not isinstance(space, BlockKrylov):
        return
    k = len(found.values)
    keep = round(_KEPT * k)
    below = round(keep * bottom / max(top + bottom, 1))
    outer = np.r_[0:below, k - (keep - below) : k]
    inner = np.setdiff1d(np.arange(k), outer)
    space.restart(found.values[inner], found.coefficients[:, outer], found.coefficients[:, inner])


def measure_rounding(start: StartBlock[Space], *, top: bool, bottom: bool, proof: bool = True) -> None:
    """Measure the error of products with the outermost Ritz vectors and with the start of a space.

    Args:
        start: The space; its `rounding` contains the error from then on.
        top: True for the vector at the upper end.
        bottom: True for the vector at the lower end.
        proof: False to leave out the start if there is another vector: residuals alone do not depend on it.
    """
    space = start.space
    if not isinstance(space, BlockKrylov):  # a vector and its product are only at hand while a step is taken
        if proof or not start.is_warm:  # the error of a warm start is known from the first step
            space.measure_next()
            space.step()
        return
    found = ritz(space, start.random)
    ends = [found.coefficients[:, -1:]] * top + [found.coefficients[:, :1]] * bottom
    # the first vector after those that a restart has kept is as random as the start
    random = np.eye(space.dimension, 1, k=-(space.restarts[-1].kept.shape[1] if space.restarts else 0))
    vectors = ([*ends, random] if proof or not ends else ends)[: space.dimension]
    whole = vectors[-1] is random and not start.is_warm and not space.restarts
    space.measure_rounding(np.concatenate(vectors, 1), last_is_random=whole)


def eigenpairs(space: Space, found: Ritz, count: int, rel: float, *, largest: bool, proof: bool = True) -> EigenPairs:
    """Return the Ritz pairs at one end of the spectrum.

    Args:
        space: The space.
        found: Its Ritz pairs.
        count: Number of pairs; fewer are returned if the space is smaller.
        rel: A bound up to `rel` times the largest absolute Ritz value counts as converged.
        largest: True for the largest pairs (descending), False for the smallest (ascending).
        proof: False if the bound of the outermost pair is its residual.

    Returns:
        The pairs. Residuals follow from what leaves the space, without another product; a bound of the rounding
        errors, which they do not contain, is added.
    """
    order = found.outermost(count, largest=largest)
    values = torch.from_numpy(found.values[order])
    vectors = _vectors(space, found.coefficients[:, order])
    rounding = found.rounding
    residuals = torch.from_numpy(found.residuals[order])
    bounds = torch.from_numpy(found.bounds[order])
    if len(bounds) and not proof:
        bounds[0] = residuals[0]
    elif len(bounds):
        bounds[0] = found.reach(largest=largest) + rounding
        if found.enclosed(rel * found.scale - rounding, largest=largest):  # the criterion that stopped the search
            bounds[0] = bounds[0].clamp(max=rel * found.scale)
    return EigenPairs(values, vectors, residuals, bounds, bounds <= rel * found.scale, proof=proof)


def _vectors(space: Space, coefficients: Array) -> Tensor:
    """Return vectors of the space as columns, `(n, j)`; `(n, 0)` where no basis is kept."""
    if isinstance(space, BlockKrylov):
        return space.mixed(coefficients).mT
    return torch.empty(space.size, 0)


def _met(found: Ritz, top: int, bottom: int, rel: float) -> bool:
    """Return True if the requested pairs at both ends meet their bounds."""
    # a space that is known as well as its products needs no more of them
    allowed = max(rel * found.scale - found.rounding, found.rounding)
    if top and not found.enclosed(allowed, largest=True):
        return False
    if bottom and not found.enclosed(allowed, largest=False):
        return False
    highest, lowest = found.outermost(top, largest=True), found.outermost(bottom, largest=False)
    if len(highest) < top or len(lowest) < bottom:
        return False
    inner = np.concatenate([highest[1:], lowest[1:]])
    return bool(np.all(found.bounds[inner] <= allowed + found.rounding))


def _settled(found: Ritz, top: int, bottom: int, rel: float) -> bool:
    """Return True if the residuals of the requested pairs at both ends are small enough, or rounding."""
    outer = np.concatenate([found.outermost(top, largest=True), found.outermost(bottom, largest=False)])
    allowed = max(rel * found.scale, 2 * found.rounding)  # a residual contains the rounding of a product
    return len(outer) == top + bottom and bool(np.all(found.residuals[outer] <= allowed))
