"""Sampling error of a barrier: its standard error over the samples, which are the same at both ends and at the top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.landscape.surfaces.pictures import Array, Path
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.batch_tree import length
from lossscope.probes.objective.objective import Objective

__all__ = ["SAMPLING", "paired_error", "with_sampling_error"]

SAMPLING: Final = "sampling error of the barrier"  # its name among what is missing
_PARTS: Final = 64  # of the samples at most: the standard error is then known to 9 %
_LEAST: Final = 8  # parts without which there is no standard error


def with_sampling_error(
    path: Path,
    objective: Objective,
    first: Tensor,
    second: Tensor,
    *,
    prepare: Callable[[Objective], None] | None = None,
) -> Path:
    """Return a path with the standard error of its barrier over the samples.

    The height of the highest inner point, L(t) - (1 - t) L(0) - t L(1), is a mean over samples of the same combination
    of their own losses. So its error is that of the mean of paired differences: what the ends share cancels. It is
    taken with t as found, from the samples in 64 random parts or one by one if they are fewer; for statistics of
    BatchNorm as measured on all of them.

    Args:
        path: The path.
        objective: Its loss.
        first: `(n,)`, parameters at its first end.
        second: `(n,)`, those at its second end.
        prepare: Called with the objective at each of the three points before its losses are taken.

    Returns:
        The path; with the reason in `missing` where the error cannot be had.
    """
    try:
        error, parts = _measured(path, objective, first, second, prepare)
    except ProbeError as problem:
        return replace(path, missing={**path.missing, SAMPLING: str(problem)})
    return replace(path, sampling_error=error, parts=parts)


def paired_error(heights: Array, weights: Array) -> float:
    """Return the standard error of a weighted mean over independent parts.

    Args:
        heights: `(k,)`, the mean of each part.
        weights: `(k,)`, the share of each part in the samples.
    """
    mean = float(np.sum(weights * heights))
    spread = float(np.sum((weights * (heights - mean)) ** 2))
    return float(np.sqrt(len(heights) / (len(heights) - 1) * spread))


def _measured(
    path: Path,
    objective: Objective,
    first: Tensor,
    second: Tensor,
    prepare: Callable[[Objective], None] | None,
) -> tuple[float, int]:
    """Return the standard error and the number of parts."""
    if not np.isfinite(path.drawn).all():
        raise ProbeError("the loss is not finite on the path")
    parts = _parts(objective)
    share = float(path.shares[path.top])
    at_first, at_top, at_second = (
        _losses(objective, parts, vector, prepare)
        for vector in (first, torch.add(first, second - first, alpha=share), second)
    )
    heights = at_top - (1 - share) * at_first - share * at_second
    if not np.isfinite(heights).all():
        raise ProbeError("the loss of a part of the samples is not finite on the path")
    counts = np.array([float(one.samples) for one in parts])
    return paired_error(heights, counts / counts.sum()), len(parts)


def _parts(objective: Objective) -> tuple[Objective, ...]:
    """Return the loss on up to 64 random parts of the samples."""
    count = sum(length(batch) or 0 for batch in objective.data.batches)
    if count < _LEAST:
        raise ProbeError(f"an error over samples needs at least {_LEAST} of them, got {count}: give the loss more data")
    return objective.split(min(count, _PARTS), seed=0)


def _losses(
    objective: Objective, parts: tuple[Objective, ...], vector: Tensor, prepare: Callable[[Objective], None] | None
) -> Array:
    """Return the loss of each part at other parameters."""
    if prepare is not None:
        with objective.at(vector):
            prepare(objective)
    return np.array([one.value_at(vector) for one in parts])
