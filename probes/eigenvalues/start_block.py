"""Start of a Krylov space: standard normal vectors, to which eigenvectors of a similar operator may be added."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor

from lossscope.probes.eigenvalues.block_krylov import BlockKrylov
from lossscope.probes.eigenvalues.orthonormal_rows import Array
from lossscope.probes.eigenvalues.three_vectors import ThreeVectors
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.sums import norm, row_norms

__all__ = ["Space", "StartBlock", "start_block", "start_of_three_vectors"]

Space = BlockKrylov | ThreeVectors
AnySpace = TypeVar("AnySpace", bound=Space, covariant=True)

_RANDOM_SHARE: Final = 0.3  # random part of a warm start, so that a new largest eigenvalue is found


@dataclass(frozen=True)
class StartBlock(Generic[AnySpace]):
    """A Krylov space with the random part of its start."""

    space: AnySpace
    random: Array  # (b', b), coordinates of b standard normal vectors in the first block
    is_warm: bool  # True if something was added to them


def start_block(
    operator: SymmetricOperator,
    width: int,
    warm_start: Tensor | None,
    generator: torch.Generator,
    *,
    spill: Path | None = None,
) -> StartBlock[BlockKrylov]:
    """Return the Krylov space of `width` standard normal vectors, before its first product.

    A warm start is added to a single random vector, and is an additional vector of a wider block. Adding a fixed vector
    to a normal one never makes it more likely that an eigenvector is missed, so the bounds stay valid.

    Args:
        operator: `(n, n)`.
        width: Number of random vectors.
        warm_start: `(n,)` or `(n, j)`, approximate eigenvectors, or None.
        generator: CPU generator, the only source of randomness.
        spill: Folder of the files in which the basis lies; None for memory.

    Returns:
        The space.

    Raises:
        ProbeError: `warm_start` has another shape or is not finite.
    """
    n = operator.size
    rows = [operator.normal(generator) for _ in range(min(width, n))]
    if warm_start is not None:
        warm = _mean_direction(warm_start, operator.length).to(rows[0]) * (math.sqrt(n) / _RANDOM_SHARE)
        if len(rows) == 1:
            rows[0] = rows[0] + warm
        else:
            rows.append(warm)
    space = BlockKrylov(operator, torch.stack(rows), generator, spill=spill)
    return StartBlock(space, space.start[:, : min(width, n)], warm_start is not None)


def start_of_three_vectors(
    operator: SymmetricOperator,
    warm_start: Tensor | None,
    generator: torch.Generator,
    seed: int,
    *,
    measures_rounding: bool = True,
) -> StartBlock[ThreeVectors]:
    """Return the recurrence of one standard normal vector, before its first product.

    Args:
        operator: `(n, n)`.
        warm_start: `(n,)` or `(n, j)`, approximate eigenvectors whose mean is added, or None.
        generator: CPU generator of the vector.
        seed: Seed of the sketch.
        measures_rounding: False for an assumed rounding of products, see `ThreeVectors`.

    Returns:
        The space.

    Raises:
        ProbeError: `warm_start` has another shape or is not finite.
    """
    vector = operator.normal(generator)
    if warm_start is not None:
        _add_direction(vector, warm_start)
    warm = warm_start is not None
    space = ThreeVectors(operator, vector, seed, measures_rounding=measures_rounding, is_random=not warm)
    return StartBlock(space, space.start, warm)


def _add_direction(vector: Tensor, warm_start: Tensor) -> None:
    """Add the mean direction of warm vectors to a random one, in place and column by column."""
    n = len(vector)
    _check_warm(warm_start, n)
    factor, columns = math.sqrt(n) / _RANDOM_SHARE, warm_start.detach().reshape(n, -1)
    lengths = row_norms(columns.mT).clamp_min(torch.finfo(torch.float64).tiny)
    if columns.shape[1] == 1:
        vector.add_(columns[:, 0].to(vector), alpha=factor / float(lengths[0]))
        return
    mean = torch.zeros_like(vector)
    for column, length in zip(columns.mT, lengths, strict=True):
        mean.add_(column.to(vector), alpha=1 / float(length))
    vector.add_(mean, alpha=factor / max(float(norm(mean)), torch.finfo(torch.float64).tiny))


def _check_warm(warm_start: Tensor, size: int) -> None:
    """Raise if warm vectors have another shape or are not finite."""
    if warm_start.ndim not in (1, 2) or len(warm_start) != size or not bool(torch.isfinite(warm_start).all()):
        raise ProbeError(
            f"warm_start must be finite, of shape ({size},) or ({size}, j), got shape {tuple(warm_start.shape)}"
        )


def _mean_direction(warm_start: Tensor, size: int) -> Tensor:
    """Return the normalized mean of the normalized warm vectors; zero if they are zero."""
    _check_warm(warm_start, size)
    columns = warm_start.detach().double().reshape(size, -1)
    return _unit(_unit(columns).sum(1, keepdim=True))[:, 0]


def _unit(columns: Tensor) -> Tensor:
    """Normalize the columns; zero columns stay zero."""
    return columns / row_norms(columns.mT).to(columns.device).clamp_min(torch.finfo(torch.float64).tiny)
