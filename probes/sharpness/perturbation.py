"""Perturbations of a given size, relative to each weight or not: their scale, their batches, and their resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.statistics.estimate import Estimate, mean_estimate, rounded_estimate
from lossscope.probes.sums import norm

__all__ = ["batches_of", "mean_over_batches", "require_resolved", "require_size", "rms", "scale_of"]

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


def mean_over_batches(weights: Sequence[float], values: Sequence[float], rounding: Sequence[float]) -> Estimate:
    """Return the mean of numbers of single batches, with its interval over the drawing of the batches.

    Args:
        weights: Weight of each batch, which add up to 1.
        values: Number of each batch.
        rounding: Bound of the rounding error of each number.

    Returns:
        The mean; exact up to rounding if there is a single batch. Converged if rounding is at most 1 % of it.
    """
    value, error = (math.fsum(w * one for w, one in zip(weights, ones, strict=True)) for ones in (values, rounding))
    exact = rounded_estimate(value, error)
    if len(values) == 1:
        return exact
    # the mean of a ratio: what is weighted is the distance to it, so that equal numbers have no error at any sizes
    found = mean_estimate([value + len(values) * w * (one - value) for w, one in zip(weights, values, strict=True)])
    return replace(
        found, value=value, low=found.low - error, high=found.high + error, converged=exact.converged, cause=exact.cause
    )
