"""Extreme eigenpairs: growing a Krylov space until both ends of the spectrum meet their bounds."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from lossscope.probes.eigenvalues.block_krylov import BlockKrylov, StartBlock
from lossscope.probes.eigenvalues.results import EigenPairs
from lossscope.probes.eigenvalues.ritz import Ritz, ritz
from lossscope.probes.sums import row_norms

__all__ = ["WHOLE", "eigenpairs", "grow", "measure_rounding"]

WHOLE: Final = 32  # up to this size the space is grown to dimension n, where everything is exact
# dimensions beyond the requested pairs below which no end is ever enclosed, unless the space is invariant
_MORE: Final = 2
_OFTEN: Final = 24  # dimensions up to which the bounds are tested after each step, then after every second step


def grow(start: StartBlock, *, top: int, bottom: int, rel: float, max_products: int, steps: int) -> None:
    """Grow the space until both ends meet their bounds, or `max_products` are spent.

    Args:
        start: The space; it is grown in place.
        top: Number of pairs at the upper end.
        bottom: Number of pairs at the lower end.
        rel: The bound to reach, relative to the largest absolute Ritz value.
        max_products: Budget of products; `n` are always enough.
        steps: Block steps to take in any case, as far as the budget allows.
    """
    space = start.space
    limit = min(space.size, max_products)
    least = limit if limit == space.size <= WHOLE else min(limit, top + bottom)
    if 0 < space.dimension < limit and _met(ritz(space, start.random), top, bottom, rel):
        return
    while space.dimension < limit:
        space.step(limit - space.dimension)
        k = space.dimension
        early = space.width and (k < min(limit, least + _MORE) or space.steps < steps)
        if k < least or early or (k > _OFTEN and space.steps % 2):
            continue
        if _met(ritz(space, start.random), top, bottom, rel):
            return


def measure_rounding(start: StartBlock, *, top: bool, bottom: bool) -> None:
    """Measure the error of products with the outermost Ritz vectors and with the start of a space.

    Args:
        start: The space; its `rounding` contains the error from then on.
        top: True for the vector at the upper end.
        bottom: True for the vector at the lower end.
    """
    space = start.space
    found = ritz(space, start.random)
    ends = [found.coefficients[:, -1:]] * top + [found.coefficients[:, :1]] * bottom
    space.measure_rounding(np.concatenate([*ends, np.eye(space.dimension, 1)][: space.dimension], 1))


def eigenpairs(space: BlockKrylov, found: Ritz, count: int, rel: float, *, largest: bool) -> EigenPairs:
    """Return the Ritz pairs at one end of the spectrum.

    Args:
        space: The space.
        found: Its Ritz pairs.
        count: Number of pairs; fewer are returned if the space is smaller.
        rel: A bound up to `rel` times the largest absolute Ritz value counts as converged.
        largest: True for the largest pairs (descending), False for the smallest (ascending).

    Returns:
        The pairs. Residuals are computed from the stored images without another product. As the images have rounding
        errors, which this residual does not contain, a bound of these is added.
    """
    order = np.arange(len(found.values))[::-1][:count] if largest else np.arange(len(found.values))[:count]
    values = torch.from_numpy(found.values[order])
    coefficients = torch.from_numpy(found.coefficients[:, order]).to(space.basis)
    vectors = space.basis.mT @ coefficients
    defects = space.images.mT @ coefficients - vectors * values.to(vectors)
    rounding = found.rounding
    residuals = row_norms(defects.mT).cpu() + rounding
    bounds = torch.from_numpy(found.bounds[order])
    if len(bounds):
        bounds[0] = found.reach(largest=largest) + rounding
        if found.enclosed(rel * found.scale - rounding, largest=largest):  # the criterion that stopped the search
            bounds[0] = bounds[0].clamp(max=rel * found.scale)
    return EigenPairs(values, vectors, residuals, bounds, bounds <= rel * found.scale)


def _met(found: Ritz, top: int, bottom: int, rel: float) -> bool:
    """Return True if the requested pairs at both ends meet their bounds."""
    # a space that is known as well as its products needs no more of them
    allowed = max(rel * found.scale - found.rounding, found.rounding)
    k = len(found.values)
    if top and not found.enclosed(allowed, largest=True):
        return False
    if bottom and not found.enclosed(allowed, largest=False):
        return False
    inner = np.concatenate([np.arange(k - top, k - 1), np.arange(1, bottom)]).astype(int)
    return bool(np.all(found.bounds[inner] <= allowed + found.rounding))
