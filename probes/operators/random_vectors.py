"""Random vectors from a CPU generator, so that equal seeds give equal vectors on every device."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

__all__ = ["normal", "signs"]

_WORD: Final = 64  # signs that are drawn at a time


def normal(size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw independent standard normal numbers `(size,)` in a dtype, on the CPU.

    Args:
        size: Number of entries.
        generator: CPU generator.
        dtype: Floating dtype in which they are drawn: equal seeds give other numbers in another dtype.
    """
    return torch.randn(size, generator=generator, dtype=dtype)


def signs(size: int, generator: torch.Generator) -> Tensor:
    """Draw independent random signs `(size,)` int8, on the CPU: bits of words, eight times as fast as one by one.

    Args:
        size: Number of entries.
        generator: CPU generator.
    """
    low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    words = torch.randint(low, high, (-(-size // _WORD),), generator=generator, dtype=torch.int64)
    bits = np.unpackbits(words.numpy().view(np.uint8), count=size).view(np.int8)
    return torch.from_numpy(bits).mul_(2).sub_(1)
