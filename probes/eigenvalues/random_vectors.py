"""Random vectors that are drawn chunk by chunk: the same numbers as one draw, without a float64 copy of all."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lossscope.probes.operators.base import SymmetricOperator

__all__ = ["standard_normal"]

_CHUNK: Final = 2**18  # numbers of a chunk, a multiple of those that torch draws at a time
_TAIL: Final = 16  # numbers that torch draws at a time; it draws the last of them anew where they are fewer


def standard_normal(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Draw a standard normal vector in float64 and return it in the operator's dtype and on its device.

    Args:
        operator: `(n, n)`.
        generator: CPU generator.

    Returns:
        `(n,)`, the numbers of `torch.randn(n, generator=generator, dtype=torch.float64)`.
    """
    found = torch.empty(operator.size, dtype=operator.dtype, device=operator.device)
    begin = 0
    while begin < len(found):
        end = min(begin + _CHUNK, len(found))
        if len(found) - end < _TAIL:
            end = len(found)
        found[begin:end] = torch.randn(end - begin, generator=generator, dtype=torch.float64)
        begin = end
    return found
