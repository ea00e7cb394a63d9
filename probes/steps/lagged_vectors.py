"""The cosines that tell how long a shear, or a gradient, keeps its direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from lossscope.probes.dynamics.direction_memory import LaggedCosines
from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.block_bootstrap import Array
from lossscope.probes.steps.norms import Vector, parts
from lossscope.probes.steps.shear_geometry import cosine

__all__ = ["LAGS", "lagged_cosines"]

LAGS: Final = (1, 2, 5, 10, 20)  # steps


def lagged_cosines(first: Sequence[Vector], second: Sequence[Vector], lags: Sequence[int] = LAGS) -> LaggedCosines:
    r"""The cosines :math:`\cos(x_t^B, x_{t+k}^{B'})`, the two roles of the batches averaged.

    The vectors of one cosine never share a batch, so its noise is not mistaken for memory. The cosines are all that
    `direction_memory` needs: a recorder may keep the last vectors only.

    Args:
        first: For each step the vector of one batch: a tensor, or a list of tensors.
        second: The same of another, independent batch at the same parameters.
        lags: Steps apart, at least 1 each.

    Returns:
        The cosines.

    Raises:
        ProbeError: there are fewer than two steps, the lengths or shapes differ, or a lag is below 1 or beyond the run.

    Example:
        >>> turning = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])]
        >>> lagged_cosines(turning, turning, lags=(1, 2)).values.tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, nan], [-1.0, nan, nan]]
    """
    steps, wanted = len(first), tuple(sorted(set(lags)))
    if len(second) != steps or steps < 2:
        raise ProbeError(f"{steps} and {len(second)} steps, need the same number of at least 2 from both batches")
    if not wanted or wanted[0] < 1 or wanted[-1] >= steps:
        raise ProbeError(f"lags={tuple(lags)} are out of range, need 1 to {steps - 1} in a run of {steps} steps")
    values = np.full((1 + len(wanted), steps), math.nan)
    values[0] = _numbers([cosine(a, b) for a, b in zip(first, second, strict=True)])
    for row, k in enumerate(wanted, 1):
        there = _numbers([cosine(a, b) for a, b in zip(first[:-k], second[k:], strict=True)])
        back = _numbers([cosine(a, b) for a, b in zip(second[:-k], first[k:], strict=True)])
        values[row, : steps - k] = (there + back) / 2
    return LaggedCosines(wanted, values, sum(part.numel() for part in parts(first[0])))


def _numbers(cosines: Sequence[torch.Tensor]) -> Array:
    """0-d tensors as an array, in one copy from the device."""
    found: Array = torch.stack(list(cosines)).cpu().numpy()
    return found
