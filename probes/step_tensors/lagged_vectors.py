"""Cosines between vectors of two independent batches at a lag, the input of `direction_memory`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from lossscope.probes.dynamics.direction_memory import LaggedCosines
from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.block_bootstrap import Array
from lossscope.probes.step_tensors.norms import Vector, parts
from lossscope.probes.step_tensors.shear_geometry import cosine

__all__ = ["lagged_cosines"]

_LAGS: Final = (1, 2, 5, 10, 20)  # steps


def lagged_cosines(first: Sequence[Vector], second: Sequence[Vector], lags: Sequence[int] = _LAGS) -> LaggedCosines:
    r"""Compute the cosines :math:`\cos(x_t^B, x_{t+k}^{B'})`, averaged over exchanging the two batches.

    The two vectors of a cosine never share a batch, so batch noise does not appear as memory. `direction_memory` needs
    only the cosines: a recorder may keep just the most recent vectors.

    Args:
        first: For each step the vector of one batch: a tensor, or a list of tensors.
        second: For each step the vector of another, independent batch at the same parameters.
        lags: Lags in steps, at least 1 each.

    Returns:
        The cosines.

    Raises:
        ProbeError: There are fewer than two steps, the lengths or shapes differ, or a lag is below 1 or not shorter
            than the run.

    Example:
        >>> turning = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])]
        >>> lagged_cosines(turning, turning, lags=(1, 2)).values.tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, nan], [-1.0, nan, nan]]
    """
    steps, wanted = len(first), tuple(sorted(set(lags)))
    if len(second) != steps or steps < 2:
        raise ProbeError(f"both batches must have the same number of at least 2 steps, got {steps} and {len(second)}")
    if not wanted or wanted[0] < 1 or wanted[-1] >= steps:
        raise ProbeError(f"lags must be from 1 to {steps - 1} for {steps} steps, got {tuple(lags)}")
    values = np.full((1 + len(wanted), steps), math.nan)
    values[0] = _to_array([cosine(a, b) for a, b in zip(first, second, strict=True)])
    for row, k in enumerate(wanted, 1):
        forward = _to_array([cosine(a, b) for a, b in zip(first[:-k], second[k:], strict=True)])
        exchanged = _to_array([cosine(a, b) for a, b in zip(second[:-k], first[k:], strict=True)])
        values[row, : steps - k] = (forward + exchanged) / 2
    return LaggedCosines(wanted, values, sum(part.numel() for part in parts(first[0])))


def _to_array(cosines: Sequence[torch.Tensor]) -> Array:
    """Copy 0-d tensors to a NumPy array with one transfer from the device."""
    found: Array = torch.stack(list(cosines)).cpu().numpy()
    return found
