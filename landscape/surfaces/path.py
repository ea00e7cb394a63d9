"""Straight paths between points: the loss along them, and the barrier between their ends."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.barrier import with_sampling_error
from lossscope.landscape.surfaces.pictures import Path
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sums import norm

__all__ = ["has_statistics", "path"]

Progress: TypeAlias = Callable[[int], None]

_POINTS: Final = 21
_STATISTICS = nn.modules.batchnorm._BatchNorm


def path(
    objective: Objective,
    first: Tensor,
    second: Tensor,
    *,
    points: int = _POINTS,
    progress: Progress | None = None,
) -> Path:
    """Evaluate the loss on the straight line between two points.

    The line is one direction that neither basin prefers: its curvature says nothing about flatness. Statistics of
    BatchNorm belong to the weights with which they were measured, so a barrier may come from them alone: a network with
    BatchNorm is also evaluated with statistics measured anew, by one pass over the data in train mode at each point.

    Args:
        objective: The loss.
        first: `(n,)`, parameters.
        second: `(n,)`.
        points: Number of points, the ends included.
        progress: Called with the number of points evaluated since the last call.

    Returns:
        The path. Cost: a loss a point, three with BatchNorm; and about ten for the error of the samples. The model is
        not written.

    Raises:
        ConfigError: There are fewer than three points, or both ends are the same.

    Source:
        Barriers: J. Frankle et al. (2020), Linear mode connectivity and the lottery ticket hypothesis,
        arXiv:1912.05671. Statistics measured anew: K. Jordan et al. (2023), REPAIR, arXiv:2211.08403.
    """
    if points < 3:
        raise ConfigError(f"points must be at least 3, got {points}: both ends, and one between them")
    begun = time.perf_counter()
    between = second - first
    distance = float(norm(between))
    if not distance > 0:
        raise ConfigError("both ends of the path are the same: there is no path between them")
    shares = np.linspace(0.0, 1.0, points)
    renewed = _Renewed(objective) if has_statistics(objective.model) else None
    losses, again = [], []
    for share in shares:
        at = second if share == 1 else torch.add(first, between, alpha=float(share))
        losses.append(_finite(objective.value_at(at)))
        if renewed is not None:
            again.append(_finite(renewed(at)))
        if progress is not None:
            progress(1)
    restated = None if renewed is None else np.array(again)
    found = Path(shares, np.array(losses), restated, distance, 0.0)
    if renewed is None:
        found = with_sampling_error(found, objective, first, second)
    else:
        found = with_sampling_error(found, renewed.objective, first, second, prepare=_measure_statistics)
    return replace(found, seconds=time.perf_counter() - begun)


def has_statistics(model: nn.Module) -> bool:
    """Return True if a network has layers with running statistics of batches."""
    return any(isinstance(one, _STATISTICS) and one.track_running_stats for one in model.modules())


class _Renewed:
    """Loss with statistics of BatchNorm that are measured on the data first, on a copy of the network."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective.with_model(copy.deepcopy(objective.model))

    def __call__(self, vector: Tensor) -> float:
        """Return the loss at other parameters."""
        with self.objective.at(vector):
            _measure_statistics(self.objective)
            return self.objective.value()


def _measure_statistics(objective: Objective) -> None:
    """Set the running statistics of a network to their mean over the batches."""
    layers = [one for one in objective.model.modules() if isinstance(one, _STATISTICS) and one.track_running_stats]
    kept = [(one.momentum, one.training) for one in layers]
    try:
        for one in layers:
            one.reset_running_stats()
            one.momentum = None  # the mean over all batches
            one.train()
        with torch.no_grad():
            for batch in objective.data.batches:
                objective.loss_fn(objective.model, batch)
    finally:
        for one, (momentum, training) in zip(layers, kept, strict=True):
            one.momentum = momentum
            one.train(training)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.nan
