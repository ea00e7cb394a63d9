"""Perturbations of a given size, relative to each weight or not: their scale, their batches, and their resolution."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sums import norm

__all__ = ["batches_of", "require_resolved", "require_size", "rms", "scale_of"]

_RESOLUTION: Final = 8  # a perturbation must be this many times the error with which the dtype stores a moved weight


def require_size(name: str, size: float) -> None:
    """Raise unless the size of a perturbation is positive and finite."""
    if not 0 < size < math.inf:
        raise ProbeError(f"{name} must be positive and finite, got {size:g}")


def scale_of(theta: Tensor, *, relative: bool) -> Tensor:
    """Return the unit of each weight's perturbation, `(n,)`: the weight itself if relative, else 1.

    With its sign the perturbations follow a change of signs that keeps the function.

    Raises:
        ProbeError: All weights are zero, so that no relative perturbation moves one.
    """
    if not relative:
        return torch.ones_like(theta)
    if not bool(theta.any()):
        raise ProbeError("all weights are zero: a perturbation relative to each weight moves none, use relative=False")
    return theta


def require_resolved(name: str, size: float, error: float, unit: float) -> None:
    """Raise unless a perturbation is large beside the error with which its points are stored.

    Args:
        name: Name of the size.
        size: Size of the perturbation.
        error: Error of a stored point in the same norm, in units of half a rounding unit.
        unit: Rounding unit of the coarsest parameter.
    """
    least = _RESOLUTION * unit / 2 * error
    if size < least:
        raise ProbeError(
            f"{name} must be at least {least:.2g} for the dtype of these parameters, got {size:g}: convert the model "
            "to float32"
        )


def rms(theta: Tensor) -> float:
    """Return the root mean square of the weights."""
    return float(norm(theta)) / math.sqrt(max(len(theta), 1))


def batches_of(objective: Objective, *, per_batch: bool) -> list[tuple[float, Objective]]:
    """Return the loss of each batch with its weight in the mean, or that of all data with weight 1."""
    if not per_batch:
        return [(1.0, objective)]
    return [(weight, objective.batch(i)) for i, weight in enumerate(objective.data.weights)]
