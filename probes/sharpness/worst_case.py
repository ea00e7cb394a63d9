"""Worst-case sharpness: the largest rise of the loss within a radius, each weight in units of itself, by minibatch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.ascent import Ball, Box, Neighborhood, Region, ascents
from lossscope.probes.sharpness.perturbation import (
    batches_of,
    mean_over_batches,
    require_resolved,
    require_size,
    scale_of,
)
from lossscope.probes.sharpness.step_quality import rounding
from lossscope.probes.statistics.estimate import Estimate
from lossscope.probes.sums import dot, norm as length_of

__all__ = ["BallNorm", "WorstCase", "worst_case_sharpness"]

BallNorm: TypeAlias = Literal["l2", "linf"]


@dataclass(frozen=True, eq=False)
class WorstCase:
    """Largest rise of the loss found within a radius."""

    sharpness: Estimate  # mean over the batches of max L_B(theta + e) - L_B(theta), nats; bounded from below
    first_order: float  # what the gradients alone promise: the mean of their dual norms times rho, nats
    rises: tuple[float, ...]  # largest rise found on each batch, nats
    spread: float  # mean over the batches of the best ascent minus the worst, nats
    displacement: Tensor  # (n,), the e that reaches the largest of `rises`
    evaluations: int  # losses evaluated, each of one batch
    gradients: int  # gradients evaluated, each of one batch


def worst_case_sharpness(
    objective: Objective,
    *,
    rho: float = 0.5,
    norm: BallNorm = "l2",
    relative: bool = True,
    per_batch: bool = True,
    restarts: int = 5,
    rel: float = 1e-4,
    max_evaluations: int = 200,
    seed: int = 0,
) -> WorstCase:
    r"""Maximize the rise of the loss over perturbations of a given size, relative to each weight.

    .. math:: S(\rho) = \frac1n \sum_B \max_{\|u\| \le \rho} L_B(\theta + |\theta| \odot u) - L_B(\theta)

    B runs over the batches of the objective: a smaller batch has a higher maximum, so batches must have one size in
    everything that is compared (m-sharpness). At a minimum, for a small radius, it is :math:`\rho^2 \lambda / 2` with
    :math:`\lambda` the largest eigenvalue of :math:`\mathrm{diag}(\theta) H_B \mathrm{diag}(\theta)`; elsewhere most of
    it is the gradient's share, `first_order`. Under any diagonal map of the parameters that preserves the function the
    set of functions within the radius does not change, and so neither does the maximum.

    The maximum is searched by spectral projected gradient ascent with a monotone line search, on each batch from the
    point along the gradient and from random points at the radius. An ascent has converged when the linear model
    promises no further gain above `rel` of the rise anywhere within the radius (the Frank-Wolfe gap), or above
    rounding.

    Args:
        objective: The loss; the m of m-sharpness is the size of its batches.
        rho: Radius, above 0.
        norm: Norm of u: `l2`, or `linf`, where every weight moves by `rho` of itself at most.
        relative: False for :math:`\|e\| \le \rho` without the factor of the weights.
        per_batch: False for the maximum of the loss over all data.
        restarts: Number of ascents on each batch, at least 1: one along the gradient, the others from random points.
        rel: Share of the rise at which an ascent stops, above 0 and below 1.
        max_evaluations: Budget of loss evaluations of all ascents on one batch, at least 3 for each. Each ascent takes
            at most one gradient per loss.
        seed: Seed of the random starts.

    Returns:
        The largest rise found, a lower bound: `low` is the lower end of its 95 % interval over the drawing of the
        batches, and contains the rounding of the losses; `high` is unknown. `samples` counts ascents, and `converged`
        is True if on every batch the best one has converged. Memory: about fourteen vectors of the length of the
        parameters beside those of one gradient.

    Raises:
        ProbeError: An argument is out of range, the loss is not finite within the radius, the parameters' dtype is too
            coarse for it, or all weights are zero.

    Source:
        P. Foret et al. (2021), Sharpness-aware minimization for efficiently improving generalization, arXiv:2010.01412,
        for m-sharpness; M. Andriushchenko et al. (2023), A modern look at the relationship between sharpness and
        generalization, arXiv:2302.07011, for the adaptive worst case; E. G. Birgin et al. (2000), Nonmonotone spectral
        projected gradient methods on convex sets, SIAM J. Optim. 10, 1196-1211, for the ascent.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: (model(x) - 2).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):
        ...     round(worst_case_sharpness(objective, rho=0.5).sharpness.value, 6)
        1.0
    """
    _check(rho, norm, restarts, rel, max_evaluations)
    begun = time.perf_counter()
    scale = rho * scale_of(objective.parameters(), relative=relative)
    _require_resolved(objective, rho, norm, relative=relative)
    region: Region = Ball() if norm == "l2" else Box()
    parts = batches_of(objective, per_batch=per_batch)
    found: list[_Found] = []
    displacement, weights = torch.zeros_like(scale), [weight for weight, _ in parts]
    for _, part in parts:  # of the displacements one is kept at a time
        one, point = _on_batch(part, scale, region, restarts, rel, max_evaluations, seed)
        if one.rise > max((other.rise for other in found), default=0.0):
            displacement = point * scale
        found.append(one)
    return WorstCase(
        _estimate(found, weights, restarts, time.perf_counter() - begun),
        _mean(weights, [one.first_order for one in found]),
        tuple(one.rise for one in found),
        _mean(weights, [one.spread for one in found]),
        displacement,
        sum(one.evaluations for one in found),
        sum(one.gradients for one in found),
    )


@dataclass(frozen=True)
class _Found:
    """Largest rise found on one batch."""

    rise: float
    rounding: float
    first_order: float
    spread: float
    converged: bool
    evaluations: int
    gradients: int


def _on_batch(
    objective: Objective, scale: Tensor, region: Region, restarts: int, rel: float, most: int, seed: int
) -> tuple[_Found, Tensor]:
    """Return the largest rise found on one batch, and where in the region it is."""
    with objective.evaluating():
        around = Neighborhood(objective, scale)
        zero = torch.zeros_like(scale)
        loss, slope = around.value(zero), around.gradient(zero)
        along = region.furthest(slope, zero)
        first_order = float(dot(slope, along))
        del slope  # as long as the parameters
        starts = _starts(region, along, seed)
        best, reached = ascents(around, region, starts, restarts, loss, rel, most)
    rise = max(best.value - loss, 0.0)  # no perturbation is one too
    spread = max(best.value - min(reached), 0.0)
    error = rounding(objective, loss, best.value)
    found = _Found(rise, error, first_order, spread, best.converged, around.values, around.gradients)
    return found, best.point


def _starts(region: Region, along: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield the point along the gradient if there is one, then random points at the radius."""
    generator = torch.Generator().manual_seed(seed)
    if bool(along.any()):
        yield along
    while True:
        yield region.random(along, generator)


def _mean(weights: list[float], values: list[float]) -> float:
    return math.fsum(weight * one for weight, one in zip(weights, values, strict=True))


def _estimate(found: list[_Found], weights: list[float], restarts: int, seconds: float) -> Estimate:
    """Return the mean over the batches, which is bounded from below only."""
    mean = mean_over_batches(weights, [one.rise for one in found], [one.rounding for one in found])
    stopped = sum(not one.converged for one in found)
    cause = f"on {stopped} of {len(found)} batches the best ascent was stopped by its budget" if stopped else ""
    return replace(
        mean,
        stderr=mean.stderr if len(found) > 1 else math.nan,
        high=math.nan,
        samples=restarts * len(found),
        bound="lower bound",
        seconds=seconds,
        converged=mean.converged and not stopped,
        cause=mean.cause or cause,
    )


def _require_resolved(objective: Objective, rho: float, norm: BallNorm, *, relative: bool) -> None:
    """Raise unless the radius is large beside the error of a stored point in its norm."""
    theta = objective.parameters()
    if relative:
        error = math.sqrt(len(theta)) if norm == "l2" else 1.0
    else:
        error = float(length_of(theta)) if norm == "l2" else float(theta.abs().max())
    require_resolved("rho", rho, error, objective.vector.unit)


def _check(rho: float, norm: BallNorm, restarts: int, rel: float, max_evaluations: int) -> None:
    """Reject arguments out of range."""
    require_size("rho", rho)
    if norm not in get_args(BallNorm):
        raise ProbeError(f"norm must be one of {', '.join(get_args(BallNorm))}, got {norm!r}")
    if restarts < 1:
        raise ProbeError(f"restarts must be at least 1, got {restarts}")
    if not 0 < rel < 1:
        raise ProbeError(f"rel must be above 0 and below 1, got {rel:g}")
    if max_evaluations < 3 * restarts:
        raise ProbeError(f"max_evaluations must be at least 3 for each of {restarts} restarts, got {max_evaluations}")
