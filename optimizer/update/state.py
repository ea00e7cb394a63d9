"""What an optimizer keeps of a parameter between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["OF_ASCENT", "adam_state", "zeros_state"]

OF_ASCENT: Final = frozenset({"shear", "placebo"})  # kept beside what the step itself needs


def adam_state(parameter: Tensor) -> dict[str, Any]:
    """A step count and Adam's two moments, all zero.

    They have the dtype of the parameter, as in `torch.optim.AdamW`. In bfloat16 the nearest number to 0.999 v is v, so
    that the second moment grows and hardly falls: keep weights in float32 there, or set betas up to (0.99, 0.99).

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
