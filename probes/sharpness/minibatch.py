"""Batch sharpness: curvature of each minibatch's loss along its own gradient."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchGradient
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.derivative_checks import require_second_derivative
from lossscope.probes.operators.second_derivative import named, second_derivative
from lossscope.probes.statistics.estimate import Estimate, exact_estimate, mean_estimate
from lossscope.probes.sums import dot, norm

__all__ = ["BatchSharpness", "batch_sharpness"]


@dataclass(frozen=True)
class BatchSharpness:
    """Curvature along minibatch gradients: two averages of the batch curvature, and the full-data curvature."""

    mean_of_ratios: Estimate  # E[g_B'H_B g_B / |g_B|^2], nats
    ratio_of_means: Estimate  # E[g_B'H_B g_B] / E|g_B|^2, nats
    noise_interaction: Estimate  # E[g_B'H g_B] / |g|^2, nats, with g and H of the whole data
    batches: int  # number of batches with a nonzero gradient
    missing: int  # number of batches without a ratio, because their gradient is zero
    batch_sizes: tuple[float, float]  # smallest and largest batch


@dataclass(frozen=True)
class _Forms:
    """Quadratic forms and squared gradient norms in units of the largest gradient, one entry per batch."""

    curvatures: list[float]  # g_B'H_B g_B
    squares: list[float]  # |g_B|^2
    crossed: list[float]  # g_A'H_B g_A with A the batch before B, none for the first
    square: float  # |g|^2 with g of the mean loss


def batch_sharpness(objective: Objective) -> BatchSharpness:
    r"""Measure the curvature of each minibatch's loss along its own gradient.

    Every batch of the objective is treated as one random minibatch B. On a quadratic, an SGD step increases the loss of
    the batch it was computed from if :math:`g_B^\top H_B g_B / |g_B|^2 > 2/\eta`; in network training the mean ratio
    was observed to stabilize at 2/lr (`batch_sharpness_threshold`).

    The **mean of ratios** is the definition; the **ratio of means** weights batches by their squared gradient. They
    differ if curvature is correlated with the size of the gradient. Both intervals refer to the distribution that the
    batches were drawn from, so they stay wide even if the batches make up the whole data.

    The **noise interaction** refers to the fixed data: on a quadratic, one SGD step decreases the loss of the whole
    data on average if and only if it is below 2/lr. Its :math:`E[g_A^\top H g_A]` is the mean over all pairs of
    :math:`g_A^\top H_B g_A`; here each batch is paired with itself and with the previous one, so batches must be in
    random order; the interval is then conservative.

    No precision is requested, and batches do not tell whether rare ones with a large gradient are missing among them:
    none of the three counts as converged.

    Args:
        objective: The loss; its batches should have the batch size of training, in eval or frozen mode.

    Returns:
        The three numbers; nan if fewer than two batches have a gradient. Cost: one gradient and two products per
        batch; `products` counts products with one batch.

    Raises:
        ProbeError: There are fewer than two batches, or a product is not finite.

    Source:
        A. Andreyev and P. Beneventano (2024), Edge of stochastic stability, arXiv:2412.20553.
    """
    counts = objective.data.counts
    if len(counts) < 2:
        raise ProbeError(
            f"batch sharpness requires at least 2 batches, got {len(counts)}: make an objective whose batches have "
            "the batch size of training"
        )
    begun = time.perf_counter()
    forms = _quadratic_forms(objective)
    ratios = [c / s for c, s in zip(forms.curvatures, forms.squares, strict=True) if s > 0]
    products, seconds = 2 * len(counts) - 1, time.perf_counter() - begun
    ratio, means, interaction = (
        replace(estimate, products=products, seconds=seconds, converged=False)
        for estimate in (
            mean_estimate(ratios) if len(ratios) > 1 else _missing(),
            _ratio_of_means(forms.curvatures, forms.squares) if len(ratios) > 1 else _missing(),
            _noise_interaction(forms, objective.data.weights),
        )
    )
    sizes = (min(counts), max(counts))
    return BatchSharpness(ratio, means, interaction, len(ratios), len(counts) - len(ratios), sizes)


def _ratio_of_means(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    r"""Estimate the ratio of two means over the same independent samples, with a 95 % jackknife interval.

    Leaving out sample i gives the ratio :math:`R_{-i}`. The pseudo-values :math:`m R - (m-1) R_{-i}` are nearly
    independent and have the true ratio as their mean, up to :math:`O(1/m^2)`; `mean_estimate` accounts for their
    skewness. No interval is reliable if a few samples dominate the sums, and the samples at hand do not tell: with rare
    large ones the interval misses most often where none of them was drawn. So the estimate never counts as converged.

    Args:
        numerators: `m >= 2` numbers.
        denominators: `m` numbers, none negative, at least two above 0.

    Returns:
        The estimate; its value is the plain ratio, and its interval contains it.

    Raises:
        ProbeError: There are fewer than two samples, or fewer than two denominators above 0.

    Source:
        R. Miller (1974), The jackknife: a review, Biometrika 61(1), 1-15.

    Example:
        >>> _ratio_of_means([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).value
        2.0
    """
    a, d = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if (positive := int((d > 0).sum())) < 2 or len(a) != len(d):
        raise ProbeError(
            f"numerators and denominators must match, with at least 2 denominators above 0, got {len(a)} numerators "
            f"and {positive} of {len(d)} denominators above 0"
        )
    m, ratio = len(d), float(a.sum() / d.sum())
    without = (a.sum() - a) / (d.sum() - d)
    found = mean_estimate(m * ratio - (m - 1) * without)
    low, high = min(found.low, ratio), max(found.high, ratio)
    return replace(found, value=ratio, low=low, high=high)


def _quadratic_forms(objective: Objective) -> _Forms:
    """Return the quadratic forms of every batch: one graph serves its gradient and both of its products."""
    total = torch.zeros(objective.size, dtype=torch.float64, device=objective.device)
    lengths: list[float] = []
    own_forms: list[float] = []
    crossed: list[float] = []
    before: Tensor | None = None
    with objective.evaluating():
        for batch in objective.gradients(graph=True):
            own, length = _direction(batch.gradient)
            lengths.append(length)
            if before is not None:
                crossed.append(_form(batch, before, last=False))
            own_forms.append(_form(batch, own, last=True))
            total.add_(own, alpha=batch.weight * length)
            before = own
        require_second_derivative(objective)
    largest = max(lengths) or 1.0
    squares = [(length / largest) ** 2 for length in lengths]
    return _Forms(
        [square * form for square, form in zip(squares, own_forms, strict=True)],
        squares,
        [square * form for square, form in zip(squares, crossed, strict=False)],
        float(norm(total.div_(largest))) ** 2,
    )


def _direction(gradient: Tensor) -> tuple[Tensor, float]:
    """Return a gradient divided by its length, and that; no square of it under- or overflows."""
    peak = float(gradient.abs().max())
    if peak == 0:
        return gradient, 0.0
    scaled = gradient / peak
    length = float(norm(scaled))
    return scaled / length, peak * length


def _form(batch: BatchGradient, direction: Tensor, *, last: bool) -> float:
    """Return the quadratic form of the batch's Hessian along a direction."""
    with named():
        found = float(dot(second_derivative(batch, direction, last), direction))
    if not math.isfinite(found):
        raise ProbeError(
            f"the curvature of a batch along a gradient is {found}: it overflows {direction.dtype} at these "
            "parameters; try the model in float64"
        )
    return found


def _noise_interaction(forms: _Forms, weights: Sequence[float]) -> Estimate:
    """Estimate the noise interaction; nan if fewer than two pairs of batches were measured."""
    square, m = forms.square, len(weights)
    if m < 3 or square == 0:
        return _missing()
    same = math.fsum(w * c for w, c in zip(weights, forms.curvatures, strict=True)) / m
    pairs = mean_estimate([(m - 1) * w * c for w, c in zip(weights[1:], forms.crossed, strict=True)])
    ends = [(same + end) / square for end in (pairs.value, pairs.low, pairs.high)]
    return replace(pairs, value=ends[0], stderr=pairs.stderr / square, low=ends[1], high=ends[2])


def _missing() -> Estimate:
    return exact_estimate(math.nan)
