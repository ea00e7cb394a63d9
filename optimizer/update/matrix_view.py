"""Matrix views of parameters: the track of a parameter, the view that is orthogonalized, and the size of its step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor

from lossscope.optimizer.update import sums

__all__ = ["ADJUSTMENTS", "ENERGIES", "TRACKS", "direction_scale", "matrix_view", "step_factor", "track_of"]

TRACKS: Final = ("matrix", "vector")
ENERGIES: Final = ("reference", "unit", "rms")
ADJUSTMENTS: Final = ("keller", "moonlight", "none")


def track_of(group: dict[str, Any], parameter: Tensor) -> str:
    """Return `"matrix"` or `"vector"`: the group's setting, else `"matrix"` for two or more dimensions."""
    return str(group["track"] or ("matrix" if parameter.ndim >= 2 else "vector"))


def matrix_view(tensor: Tensor, *, flatten: bool, convolution: bool) -> Tensor:
    """Return the tensor as `(m, n)`, or as `(batch, m, n)` for a raw 3-D parameter that is not flattened.

    Convolutions of any dimension become `(out, -1)`, transposed ones `(in, -1)`, since that is their first dimension;
    so do all parameters with four or more dimensions. A raw 3-D parameter `(h, d, n)`, such as the heads of an
    attention layer, becomes h matrices, or `(h d, n)`. The shape of a 3-D parameter does not show which case applies:
    `create(name, model)` and `routing(model)` use the type of its module.
    """
    if tensor.ndim == 2:
        return tensor
    if tensor.ndim == 3 and not convolution:
        return tensor.flatten(0, 1) if flatten else tensor
    return tensor.flatten(1)


def direction_scale(
    energy: str, E: sums.Number, O: Tensor, shape: Sequence[int], *, orthogonalize: bool
) -> sums.Number:
    """Return the factor that sets the size of a matrix step.

    `E` is the norm of Adam's direction `A`. With `O`: `E`, `E / |O|_F` or `0.2 sqrt(max(m, n))`. Without
    orthogonalization the step is along `A`, and the factor gives it the norm of the corresponding step along `O`. A
    zero `A` or `O` gives a finite factor.
    """
    # The root mean square of an Adam step is about 0.2 (Liu et al., 2025, section 2.2).
    rms, dtype = 0.2 * math.sqrt(max(shape[-2:])), sums.arithmetic(O)
    if orthogonalize:
        if energy == "rms":
            return rms
        return sums.within(E, dtype) if energy == "reference" else sums.ratio(E, sums.norm(O), dtype)
    if energy == "reference":
        return sums.within(sums.norm(O), dtype)
    return sums.ratio(rms * sums.norm(O), E, dtype) if energy == "rms" else 1.0


def step_factor(adjust: str, shape: Sequence[int]) -> float:
    """Return the factor of the orthogonal factor of an `(m, n)` matrix in a step, per unit of lr.

    Args:
        adjust: `keller`, `sqrt(max(1, m / n))` (Jordan et al., 2024); `moonlight`, `0.2 sqrt(max(m, n))`, whose root
            mean square is about that of an Adam step (Liu et al., 2025); `none`, 1. For a convolution m and n are those
            of the matrix view, `out` and `in` times the kernel's sides. Jordan's code takes `m / n` from the last two
            sides of the kernel, which is 1 for a square kernel.
        shape: `(m, n)`, or `(batch, m, n)`.

    Returns:
        The factor.
    """
    m, n = shape[-2], max(1, shape[-1])
    return {"keller": math.sqrt(max(1.0, m / n)), "moonlight": 0.2 * math.sqrt(max(m, n)), "none": 1.0}[adjust]
