"""Norms and inner products of tensors and of lists of tensors, and ratios of norms.

`norm` and `inner` treat a list of tensors as one long vector without concatenating it; `norms`, `inners` and `ratios`
return one number per tensor. Results are float64 tensors on the device of the input, without synchronization.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossscope.probes import sums
from lossscope.probes.errors import ProbeError

__all__ = [
    "Vector",
    "at_least_float32",
    "inner",
    "inners",
    "norm",
    "norms",
    "pairs",
    "parts",
    "ratios",
]

Vector = Tensor | Sequence[Tensor]


def parts(vector: Vector) -> list[Tensor]:
    """Return the tensors of a vector: the tensor itself, or the members of the list.

    Args:
        vector: A tensor of any shape, or a non-empty sequence of tensors.

    Returns:
        The tensors, detached from any graph, sharing memory with the input.

    Raises:
        ProbeError: The sequence is empty.
    """
    tensors = [vector] if isinstance(vector, Tensor) else list(vector)
    if not tensors:
        raise ProbeError("at least 1 tensor is required, got 0: skip the measure if nothing was recorded")
    return [tensor.detach() for tensor in tensors]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor, converted to float32 if its dtype has 16 bits.

    Args:
        tensor: Any floating-point tensor.

    Returns:
        A tensor of the same shape, float32 or wider: sums in 16 bits would stop growing at a few hundred.
    """
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def pairs(left: Vector, right: Vector) -> list[tuple[Tensor, Tensor]]:
    """Return the matching tensors of two vectors, detached and in float32 at least.

    Args:
        left: A tensor of any shape, or a list of tensors.
        right: Same shapes.

    Returns:
        One pair per tensor.

    Raises:
        ProbeError: The shapes differ, or there is no tensor.
    """
    lefts, rights = parts(left), parts(right)
    shapes = [tuple(a.shape) for a in lefts], [tuple(b.shape) for b in rights]
    if shapes[0] != shapes[1]:
        raise ProbeError(f"shapes must match, got {shapes[0]} and {shapes[1]}: pass the same parameters on both sides")
    return [(at_least_float32(a), at_least_float32(b)) for a, b in zip(lefts, rights, strict=True)]


def inner(left: Vector, right: Vector) -> Tensor:
    r"""Compute the inner product :math:`\langle a, b\rangle` of two tensors or of two lists of tensors.

    Products and sums are in float64, see `lossscope.probes.sums`.

    Args:
        left: A tensor of any shape, or a list of tensors.
        right: Same shapes as `left`.

    Returns:
        A 0-d float64 tensor, unit of `left` times unit of `right`.

    Raises:
        ProbeError: The shapes differ.

    Example:
        >>> inner([torch.ones(2), torch.ones(3, 1)], [torch.ones(2), torch.full((3, 1), 2.0)])
        tensor(8., dtype=torch.float64)
    """
    return inners(parts(left), parts(right)).sum()


def inners(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    r"""Compute the inner product of each pair of tensors, with the accuracy of `inner`.

    Args:
        left: A non-empty list of n tensors.
        right: Same shapes.

    Returns:
        `(n,)`, float64.

    Raises:
        ProbeError: The shapes differ, or there is no tensor.
    """
    return torch.stack([sums.dot(a, b) for a, b in pairs(left, right)])


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    r"""Compute the Euclidean norm of each tensor, accumulated in float64.

    A running float32 sum loses 1.5 % of the squared norm at ten million equal entries.

    Args:
        tensors: Floating-point tensors of any shape; an empty list gives an empty list.

    Returns:
        One 0-d float64 tensor for each, in order.

    Source:
        docs/measures/norms.md.
    """
    return sums.norms(tensors)


def norm(tensors: Vector) -> Tensor:
    r"""Compute the norm :math:`\sqrt{\sum_i \lVert t_i\rVert^2}` of a tensor, or of a list as one long vector.

    Args:
        tensors: A tensor of any shape, or a non-empty list of tensors.

    Returns:
        A 0-d float64 tensor.

    Raises:
        ProbeError: The list is empty.
    """
    return torch.stack(norms(parts(tensors))).square().sum().sqrt()


def ratios(above: Sequence[Tensor], below: Sequence[Tensor]) -> Tensor:
    r"""Compute ratios of norms, such as the update ratio :math:`\lVert\Delta W\rVert / \lVert W\rVert`.

    Args:
        above: n norms, 0-d each, n at least 1.
        below: n norms.

    Returns:
        `(n,)`, in the dtype of the norms; nan where the denominator is zero.

    Source:
        docs/measures/norms.md.
    """
    lower = torch.stack(list(below))
    return torch.stack(list(above)) / torch.where(lower > 0, lower, torch.nan)
