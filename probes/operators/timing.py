"""Wall-clock time of one gradient, the unit in which the cost of a measurement is reported."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable

import torch

from lossscope.probes.objective.objective import Objective

__all__ = ["GradientTime", "now", "signature"]

_LEAST: dict[Hashable, float] = {}  # signature -> least seconds of one gradient seen in this process


class GradientTime:
    """The least time that one gradient of an objective took.

    The first gradient of a process is slow, because torch loads kernels and the allocator is empty; a cost counted in
    such gradients would look small. So one more gradient is timed, once per process and `signature`.

    Args:
        objective: The loss.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._least: dict[int, float] = {}  # batch index -> least seconds
        self._signature: Hashable = None

    def record(self, batch: int, seconds: float) -> None:
        """Record the time of the gradient of one batch.

        Args:
            batch: The index of the batch.
            seconds: The time it took.
        """
        self._least[batch] = min(seconds, self._least.get(batch, math.inf))

    @property
    def seconds(self) -> float:
        """Time of one gradient over all batches, extrapolated from the batches recorded; nan if there are none."""
        weights = self._objective.data.weights
        share = math.fsum(weights[batch] for batch in self._least)
        least = math.fsum(self._least.values()) / share if share else math.nan
        return min(least, _LEAST.get(self._signature, math.inf))

    def warm(self) -> None:
        """Time one more gradient, unless none was recorded or a warm one is known for this signature.

        Call it inside `evaluating`.
        """
        if not self._least:
            return
        if self._signature is None:
            self._signature = signature(self._objective)
        seconds = self.seconds
        _LEAST[self._signature] = seconds if self._signature in _LEAST else min(seconds, self._one_more())

    def _one_more(self) -> float:
        """Compute the gradient over all batches and return the seconds it took."""
        self._objective.require_repeatable()  # its first use evaluates every batch, which must not be timed
        device = self._objective.device
        begun = now(device)
        for _ in self._objective.gradients():
            pass
        return now(device) - begun


def signature(objective: Objective) -> Hashable:
    """Return a key for all that the time of a gradient depends on.

    The key covers the module structure, shapes, batches, dtype, thread count and device. Two objectives with equal
    keys may still be different functions.

    Args:
        objective: The loss.

    Returns:
        The key; equal keys mean equal cost.
    """
    model = objective.model
    return (
        objective.loss_kind,
        objective.mode,
        objective.names,
        tuple((name, type(module).__qualname__) for name, module in model.named_modules()),
        tuple((name, tuple(p.shape), p.dtype) for name, p in model.named_parameters()),
        objective.data.shapes,
        torch.get_num_threads(),
        objective.dtype,
        str(objective.device),
    )


def now(device: torch.device) -> float:
    """Return the time of a monotonic clock after all work on the device has finished.

    Args:
        device: The device to synchronize with.

    Returns:
        Seconds; only differences are meaningful.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
