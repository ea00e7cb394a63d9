"""The random vectors that a Krylov space starts from, with the eigenvectors of an earlier one mixed in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.spectrum.block_krylov import Array, BlockKrylov

__all__ = ["Start", "started"]

_RANDOM_SHARE: Final = 0.3  # of a warm start, so that an eigenvalue that has overtaken the old one is seen


@dataclass(frozen=True)
class Start:
    """A Krylov space with what is random in its start."""

    space: BlockKrylov
    random: Array  # (b', b), the coordinates of b standard normal vectors in the first block


def started(operator: SymmetricOperator, width: int, warm_start: Tensor | None, generator: torch.Generator) -> Start:
    """The Krylov space of `width` standard normal vectors, before its first product.

    A warm start is added to a single vector, and is a vector more in a block. Adding a fixed vector to a normal one
    never makes it more likely that an eigenvector is missed, so the bounds hold as without.

    Args:
        operator: `(n, n)`.
        width: Random vectors.
        warm_start: `(n,)` or `(n, j)`, vectors near the wanted ones, or None.
        generator: On the CPU, the only source of randomness.

    Returns:
        The space.

    Raises:
        ProbeError: `warm_start` does not fit or is not finite.
    """
    n = operator.size
    rows = [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(min(width, n))]
    if warm_start is not None:
        warm = _middle(warm_start, n).cpu() * math.sqrt(n) / _RANDOM_SHARE
        if len(rows) == 1:
            rows[0] = rows[0] + warm
        else:
            rows.append(warm)
    space = BlockKrylov(operator, torch.stack(rows), generator)
    return Start(space, space.start[:, : min(width, n)])


def _middle(warm_start: Tensor, size: int) -> Tensor:
    """The unit vector in the middle of the warm vectors; zero where they are."""
    if warm_start.ndim not in (1, 2) or len(warm_start) != size or not bool(torch.isfinite(warm_start).all()):
        raise ProbeError(f"warm_start has shape {tuple(warm_start.shape)}, need finite numbers ({size},) or (n, j)")
    columns = warm_start.detach().double().reshape(size, -1)
    return _unit(_unit(columns).sum(1))


def _unit(columns: Tensor) -> Tensor:
    """The columns at length one; zeros stay zeros."""
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0)
    return columns / lengths.clamp_min(torch.finfo(torch.float64).tiny)
