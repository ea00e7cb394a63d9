"""Loading of torch's forward-mode rules, which takes about a second, once per process."""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch.autograd import forward_ad

__all__ = ["forward_mode_seconds", "load_forward_mode"]

_SECONDS: Final = 1.0


@cache
def load_forward_mode() -> None:
    """Load torch's forward-mode rules now, so that no measure is charged for it."""
    with forward_ad.dual_level():
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))  # type: ignore[no-untyped-call]


def forward_mode_seconds() -> float:
    """Return the seconds that `load_forward_mode` usually takes; 0 after it was called."""
    return 0.0 if load_forward_mode.cache_info().currsize else _SECONDS
