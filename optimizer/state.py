"""What an optimizer keeps of a parameter between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["adam_state", "zeros_state"]


def adam_state(parameter: Tensor) -> dict[str, Any]:
    """A step count and Adam's two moments, all zero.

    Args:
        parameter: Whose shape, dtype and device the moments get.

    Returns:
        The state.
    """
    return zeros_state(parameter, ("exp_avg", "exp_avg_sq"))


def zeros_state(parameter: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """A step count and tensors of zeros like the parameter.

    Args:
        parameter: Whose shape, dtype and device they get.
        names: What they are called.

    Returns:
        The state. The count is a tensor, as torch keeps every other number in the dtype of the parameter.
    """
    state: dict[str, Any] = {"step": torch.zeros((), dtype=torch.float32)}
    return state | {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in names}
