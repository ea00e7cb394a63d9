"""Which parameters are matrices, how a tensor is cut into them, and how large their step is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["ADJUSTMENTS", "ENERGIES", "TRACKS", "direction_scale", "matrix_view", "step_factor", "track_of"]

TRACKS: Final = ("matrix", "vector")
ENERGIES: Final = ("reference", "unit", "rms")
ADJUSTMENTS: Final = ("keller", "moonlight", "none")


def track_of(group: dict[str, Any], parameter: Tensor) -> str:
    """`"matrix"` or `"vector"`: what the group says, else matrix from two dimensions up."""
    return str(group["track"] or ("matrix" if parameter.ndim >= 2 else "vector"))


def matrix_view(tensor: Tensor, *, flatten: bool, convolution: bool) -> Tensor:
    """The tensor as `(m, n)`, or as `(batch, m, n)` for a raw 3-D parameter that is not flattened.

    Convolutions of any dimension are `(out, -1)`, transposed ones `(in, -1)` as their first dimension is that; so is
    everything with four dimensions or more. A raw 3-D parameter `(h, d, n)`, such as the heads of an attention layer,
    is h matrices, or `(h d, n)`. Three dimensions alone do not tell which it is: `create(name, model)` and
    `routing(model)` know the module.
    """
    if tensor.ndim == 2:
        return tensor
    if tensor.ndim == 3 and not convolution:
        return tensor.flatten(0, 1) if flatten else tensor
    return tensor.flatten(1)


def direction_scale(energy: str, A: Tensor, O: Tensor, shape: Sequence[int], *, orthogonalize: bool) -> Tensor:
    """The 0-d factor that gives a matrix step its size.

    With `O`: `E`, `E / |O|_F` or `0.2 sqrt(max(m, n))`. Without orthogonalization the step follows `A`, and
    the factor gives it the norm that the step along `O` would have had. A zero `A` gives a finite factor.
    """
    tiny = torch.finfo(A.dtype).tiny
    E, size = torch.linalg.vector_norm(A), torch.linalg.vector_norm(O)
    if energy == "reference":
        scale = E
    elif energy == "unit":
        scale = E / size.clamp_min(tiny)
    else:
        # The root mean square of an Adam step is about 0.2 (Liu et al., 2025, section 2.2).
        scale = torch.full_like(E, 0.2 * math.sqrt(max(shape[-2:])))
    return scale if orthogonalize else torch.div(scale * size, E.clamp_min(tiny))


def step_factor(adjust: str, shape: Sequence[int]) -> float:
    """How many times the orthogonal factor of an `(m, n)` matrix a step is long, per unit of lr.

    Args:
        adjust: `keller`, `sqrt(max(1, m / n))` (Jordan et al., 2024); `moonlight`, `0.2 sqrt(max(m, n))`, whose root
            mean square is about that of an Adam step (Liu et al., 2025); `none`, 1. For a convolution m and n are those
            of the cut, `out` and `in` times the kernel's sides. Jordan's code takes `m / n` from the last two sides of
            the kernel, which is 1 for a square one.
        shape: `(m, n)`, or `(batch, m, n)`.

    Returns:
        The factor.
    """
    m, n = shape[-2:]
    return {"keller": math.sqrt(max(1.0, m / n)), "moonlight": 0.2 * math.sqrt(max(m, n)), "none": 1.0}[adjust]
