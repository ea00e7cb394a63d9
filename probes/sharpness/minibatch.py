"""Batch sharpness: the curvature that minibatch gradients meet along themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchGradient
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.second_derivative import require_second_derivative, second_derivative
from lossscope.probes.statistics.estimate import Estimate, exact_estimate, mean_estimate

__all__ = ["BatchSharpness", "batch_sharpness", "ratio_of_means"]

_ENOUGH: Final = 24  # batches that a ratio of means must rest on for its interval to be trusted


@dataclass(frozen=True)
class BatchSharpness:
    """Curvature along minibatch gradients, by both averages, and how the whole loss curves along them."""

    mean_of_ratios: Estimate  # E[g_B'H_B g_B / |g_B|^2], nats
    ratio_of_means: Estimate  # E[g_B'H_B g_B] / E|g_B|^2, nats
    noise_interaction: Estimate  # E[g_B'H g_B] / |g|^2, nats, with g and H of the whole data
    batches: int  # that have a ratio
    gaps: int  # batches without one: their gradient is zero
    batch_sizes: tuple[float, float]  # of the smallest and of the largest batch


@dataclass(frozen=True)
class _Forms:
    """What the batches gave, one entry each."""

    curvatures: list[float]  # g_B'H_B g_B
    squares: list[float]  # |g_B|^2
    crossed: list[float]  # g_A'H_B g_A with A the batch before B, none for the first
    gradient: Tensor  # (n,) float64, of the mean loss


def batch_sharpness(objective: Objective) -> BatchSharpness:
    r"""How sharply each minibatch's loss curves along that minibatch's own gradient.

    Every batch of the objective is taken as one minibatch B, drawn at random. Steps of SGD on a quadratic
    raise the loss of the batch they were computed from where :math:`g_B^\top H_B g_B / |g_B|^2 > 2/\eta`; networks were
    seen to settle at a mean ratio of 2/lr (`batch_sharpness_threshold`).

    The **mean of ratios** is the definition, the **ratio of means** weights batches by their squared gradient.
    They differ wherever large gradients meet other curvature than small ones. Both intervals are for the
    distribution that the batches were drawn from, so they stay wide if the batches make up the whole data.

    The **noise interaction** is about the fixed data: on a quadratic one step of SGD lowers the loss of
    the whole data on average exactly where it is below 2/lr. Its :math:`E[g_A^\top H g_A]` is the mean over all
    pairs of :math:`g_A^\top H_B g_A`; here the pairs of each batch with itself and with the one before are
    measured, so batches must stand in random order; the interval is then wide rather than narrow.

    Args:
        objective: The loss; make its batches of the size that training uses, in eval or frozen mode.

    Returns:
        The three numbers; where fewer than two batches have a gradient, gaps. One gradient and two products for each
        batch are spent; `products` counts products with one batch.

    Raises:
        ProbeError: there are fewer than two batches, or a product is not finite.

    Source:
        A. Andreyev and P. Beneventano (2024), Edge of stochastic stability, arXiv:2412.20553.
    """
    counts = objective.data.counts
    if len(counts) < 2:
        raise ProbeError(
            f"{len(counts)} batch has no batch sharpness, need at least 2: make an objective whose batches have "
            "the size that training uses"
        )
    begun = time.perf_counter()
    forms = _measured(objective)
    ratios = [c / s for c, s in zip(forms.curvatures, forms.squares, strict=True) if s > 0]
    products, seconds = 2 * len(counts) - 1, time.perf_counter() - begun
    ratio, means, interaction = (
        replace(estimate, products=products, seconds=seconds)
        for estimate in (
            mean_estimate(ratios) if len(ratios) > 1 else _gap(),
            ratio_of_means(forms.curvatures, forms.squares) if len(ratios) > 1 else _gap(),
            _noise_interaction(forms, objective.data.weights),
        )
    )
    sizes = (min(counts), max(counts))
    return BatchSharpness(ratio, means, interaction, len(ratios), len(counts) - len(ratios), sizes)


def ratio_of_means(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    r"""The ratio of two means over the same independent samples, with a 95 % interval by the jackknife.

    Leaving out sample i gives the ratio :math:`R_{-i}`, and the :math:`m R - (m-1) R_{-i}` are nearly
    independent with the true ratio as their mean, up to :math:`O(1/m^2)`; `mean_estimate` of them takes their
    skew into account. Where a few samples make up the sums no interval can know what the next one brings:
    with :math:`k = (\sum d_i)^2 / \sum d_i^2` samples of equal weight behind the denominator, intervals cover
    the truth in 93 to 95 % of cases for :math:`k \ge 24` and in 88 to 92 % below, so `converged` is :math:`k \ge 24`.

    Args:
        numerators: `m >= 2` numbers.
        denominators: As many, none negative, at least two above 0.

    Returns:
        The estimate; its value is the plain ratio, and its interval contains it.

    Raises:
        ProbeError: there are fewer than two samples, or fewer than two denominators above 0.

    Source:
        R. Miller (1974), The jackknife: a review, Biometrika 61(1), 1-15.

    Example:
        >>> ratio_of_means([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).value
        2.0
    """
    a, d = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if (positive := int((d > 0).sum())) < 2 or len(a) != len(d):
        raise ProbeError(f"{positive} of {len(d)} denominators for {len(a)} numerators are above 0, need at least 2")
    m, ratio = len(d), float(a.sum() / d.sum())
    without = (a.sum() - a) / (d.sum() - d)
    found = mean_estimate(m * ratio - (m - 1) * without)
    alike = float(d.sum() ** 2 / (d * d).sum())
    low, high = min(found.low, ratio), max(found.high, ratio)
    return replace(found, value=ratio, low=low, high=high, converged=alike >= _ENOUGH)


def _measured(objective: Objective) -> _Forms:
    """The forms of every batch: one graph serves its gradient and both of its products."""
    forms = _Forms([], [], [], torch.zeros(objective.size, dtype=torch.float64, device=objective.device))
    before: Tensor | None = None
    with objective.evaluating():
        for batch in objective.gradients(graph=True):
            own = batch.gradient.detach()
            forms.squares.append(_inner(own, own))
            if before is not None:
                forms.crossed.append(_form(batch, before, last=False))
            forms.curvatures.append(_form(batch, own, last=True))
            forms.gradient.add_(own, alpha=batch.weight)
            before = own
        require_second_derivative(objective)
    return forms


def _form(batch: BatchGradient, direction: Tensor, *, last: bool) -> float:
    """The curvature of the batch's loss along a direction."""
    found = _inner(second_derivative(batch, direction, last), direction)
    if not math.isfinite(found):
        raise ProbeError(
            f"the curvature of a batch along a gradient is {found}: it overflows {direction.dtype} at these "
            "parameters; try the model in float64"
        )
    return found


def _inner(left: Tensor, right: Tensor) -> float:
    return float(left.double() @ right.double())


def _noise_interaction(forms: _Forms, weights: Sequence[float]) -> Estimate:
    """The curvature of the whole loss along minibatch gradients; a gap where fewer than two pairs were measured."""
    square = _inner(forms.gradient, forms.gradient)
    m = len(weights)
    if m < 3 or square == 0:
        return _gap()
    same = math.fsum(w * c for w, c in zip(weights, forms.curvatures, strict=True)) / m
    pairs = mean_estimate([(m - 1) * w * c for w, c in zip(weights[1:], forms.crossed, strict=True)])
    ends = [(same + end) / square for end in (pairs.value, pairs.low, pairs.high)]
    return replace(pairs, value=ends[0], stderr=pairs.stderr / square, low=ends[1], high=ends[2])


def _gap() -> Estimate:
    return exact_estimate(math.nan)
