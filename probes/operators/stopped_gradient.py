"""Check that the gradient of a loss is the derivative of its value, which a stopped gradient is not."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Final

import torch

from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sums import dot, norm

__all__ = ["stops_gradients"]

_STEP: Final = 1 / 3  # exponent of the rounding unit in the step, which balances rounding and truncation
_OFF: Final = 0.01  # relative difference above which a gradient is clearly of something else
_EXACT: Final = 1e-6  # and above which it is not quite the derivative
_MARGIN: Final = 10.0  # differences of two steps by which a derivative may be off
_SETTLED: Final = 1e-3  # relative difference of two steps below which a difference is a derivative


def stops_gradients(objective: Objective, *, slightly: bool = False) -> bool:
    """Return True if the gradient of a loss is not the derivative of its value.

    That is so where the loss or the model treats a function of the parameters as a constant: `detach()`, `no_grad()`,
    a straight-through function. Differences of gradients then move what derivatives hold still.

    Args:
        objective: The loss; its first batch is evaluated.
        slightly: True to find small contradictions too, as of the power iteration of a spectral norm in train mode.

    Returns:
        True if differences of the loss along a direction, in float64, contradict the gradient; False if they agree, or
        if nothing can be concluded. Cost: one gradient and four evaluations.
    """
    try:
        wide = copy.copy(objective.in_double())
        wide.mode = "frozen" if objective.mode == "train" else objective.mode  # updates no buffers
        with wide.evaluating():
            return _contradicted(wide, replace(next(wide.passes()), before=None), _EXACT if slightly else _OFF)
    except Exception:  # a copy in float64 may fail in any way, and then nothing is known
        return False


def _contradicted(objective: Objective, at: BatchEvaluation, allowed: float) -> bool:
    """Compare differences of the loss of one batch with its gradient."""
    theta = objective.parameters()
    leaves = objective.leaves()
    parts = objective.within(lambda loss: objective.derivative(loss.reshape(()), leaves), leaves, at)
    gradient = objective.vector.joined(parts)
    drawn = torch.randn(objective.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(theta)
    direction = drawn / float(norm(drawn)) + gradient / (float(norm(gradient)) or 1.0)

    def slope(length: float) -> float:
        ends = [theta + side * length * direction for side in (1, -1)]
        above, below = (float(objective.within(lambda loss: loss.detach(), objective.leaves(end), at)) for end in ends)
        return (above - below) / (2 * length)

    step = objective.vector.unit**_STEP * (float(norm(theta)) or 1.0)
    coarse, fine = slope(step), slope(step / 2)
    size, change = max(abs(coarse), abs(fine)), abs(coarse - fine)
    off = abs(fine - float(dot(gradient, direction)))
    return change <= _SETTLED * size and off > max(allowed * size, _MARGIN * change)
