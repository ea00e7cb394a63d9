"""Directions in which a loss is drawn: relative and filter-normalized random ones, and planes through points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from lossscope.landscape.errors import ConfigError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sums import dot, norm

__all__ = ["filter_normalized", "orthonormal", "relative_directions", "unmoved_filters", "unmoved_weights"]

_NAMED: Final = 3
_PARALLEL: Final = 1e-6  # sine of the angle between two vectors that span no plane


def relative_directions(theta: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
    """Yield theta times z with z ~ N(0, I), drawn on the CPU so that all devices get the same.

    Args:
        theta: `(n,)`, the parameters.
        draws: Number of directions.
        seed: Seed.

    Yields:
        `(n,)`, the directions, each in memory of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        z = torch.randn(len(theta), generator=generator, dtype=torch.float32)
        yield z.to(theta).mul_(theta)


def filter_normalized(objective: Objective, generator: torch.Generator) -> Tensor:
    """Return a Gaussian direction whose filters are as long as those of the parameters.

    A filter is a row of a matrix or of a convolution's weight: all weights into one neuron or channel. Directions of
    parameters with one dimension (biases, gains) are zero. That fixes the length only: the same function with neurons
    rescaled against each other has another picture.

    Args:
        objective: The loss, for the shapes of its parameters.
        generator: Random numbers, of the CPU.

    Returns:
        `(n,)`.

    Source:
        H. Li et al. (2018), Visualizing the loss landscape of neural nets, arXiv:1712.09913, section 4.
    """
    parts = []
    for p in objective.vector.tensors():
        if p.ndim < 2:
            parts.append(torch.zeros(p.numel(), dtype=objective.dtype, device=p.device))
            continue
        drawn = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p.device, torch.float64).flatten(1)
        lengths = p.double().flatten(1).square().sum(1, keepdim=True).sqrt()  # a filter is short
        drawn *= lengths / drawn.square().sum(1, keepdim=True).sqrt()
        parts.append(drawn.flatten().to(objective.dtype))
    return torch.cat(parts)


def unmoved_weights(objective: Objective) -> tuple[str, ...]:
    """Return a sentence about parameters that relative directions do not move, as all their weights are zero."""
    zero = [name for name, p in _parameters(objective) if not bool(p.count_nonzero())]
    return (f"all weights of {_listed(zero)} are zero, which relative directions do not move",) if zero else ()


def unmoved_filters(objective: Objective) -> tuple[str, ...]:
    """Return sentences about parameters that filter-normalized directions do not move."""
    rows = [name for name, p in _parameters(objective) if p.ndim > 1 and not bool(p.flatten(1).ne(0).any(1).all())]
    flat = [name for name, p in _parameters(objective) if p.ndim < 2]
    notes = [f"filters of {_listed(rows)} are zero, which filter-normalized directions do not move"] if rows else []
    notes += [f"{_listed(flat)} have one dimension, which filter-normalized directions do not move"] if flat else []
    return tuple(notes)


def _parameters(objective: Objective) -> list[tuple[str, Tensor]]:
    """Return the parameters by name."""
    return list(zip(objective.names, objective.vector.tensors(), strict=True))


def _listed(names: Sequence[str]) -> str:
    """Return some names, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def orthonormal(first: Tensor, second: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of the plane of two vectors, the first along the first of them.

    Args:
        first: `(n,)`.
        second: `(n,)`.
        names: Names of the two vectors for the message.

    Raises:
        ConfigError: One is zero or both are parallel.
    """
    lengths = [float(norm(one)) for one in (first, second)]
    for name, length in zip(names, lengths, strict=True):
        if not 0 < length < float("inf"):
            raise ConfigError(f"{name} has the length {length:g}: it spans no plane")
    a = first / lengths[0]
    b = second / lengths[1]
    for _ in range(2):
        b -= float(dot(a, b)) * a
        rest = float(norm(b))
        if rest < _PARALLEL:
            raise ConfigError(f"{names[0]} and {names[1]} are parallel: they span no plane")
        b /= rest
    return a, b
