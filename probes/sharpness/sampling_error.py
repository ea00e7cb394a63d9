"""What another sample of data would do to an eigenvalue: cross-fitting, and the interval of the population."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.spectrum.measure import measure_spectrum
from lossscope.probes.statistics.estimate import Estimate, mean_estimate
from lossscope.probes.statistics.propagation import independent_seeds

__all__ = ["CrossFit", "End", "HalfForms", "SampledEigenvalue", "cross_fit", "sampled_eigenvalue"]

Array = np.ndarray[Any, Any]
End = Literal["top", "bottom"]


@dataclass(frozen=True)
class HalfForms:
    """The curvature v'H_i v of each part i of one half of the data, along two directions."""

    seen: Array  # (p,) along the eigenvector of all the data
    unseen: Array  # (p,) along that of the other half
    counts: Array  # (p,) terms that the loss of each part is a mean over


@dataclass(frozen=True)
class CrossFit:
    """What the parts say."""

    in_sample: Estimate  # the mean along the eigenvector of all the data
    cross_fitted: Estimate  # the mean along the eigenvectors that have not seen the part
    population: Estimate  # the eigenvalue of the population


def cross_fit(eigenvalue: Estimate, halves: Sequence[HalfForms], alignment: float, end: End) -> CrossFit:
    r"""The cross-fitted eigenvalue, and an interval for that of the population.

    With E the error of a half's Hessian, :math:`E_A, E_B` independent of mean zero, the errors of both directions are
    :math:`e_A = v_A^\top E_B v_A` and :math:`e_B = v_B^\top E_A v_B`. With :math:`v_A = v + P E_A v + \dots`, P
    the resolvent off v, all terms of their covariance with one E alone vanish, and

    .. math:: \mathrm{E}\, e_A e_B = 4\, \mathrm{E}\, (v^\top E_B P E_A v)^2

    to lowest order. For rotation-invariant E that is :math:`1 - (v_A^\top v_B)^2` times :math:`\mathrm{E}\, e_A^2` in
    the mean, and less where the noise is largest along v, as it is for the top eigenvector of :math:`x x^\top`. So the
    squared error is that of independent halves times :math:`2 - (v_A^\top v_B)^2`: right where the data settle
    the eigenvector, and cautious, up to the error of two halves that move as one, where they do not.

    Each half has its spread about its own mean, since its direction is another one.

    Args:
        eigenvalue: Of all the data, with its numerical bound.
        halves: The forms of both halves.
        alignment: :math:`(v_A^\top v_B)^2`.
        end: Which end of the spectrum.

    Returns:
        The estimates.

    Source:
        Derived here; tested by coverage over seeds, with and without a gap, and with heavy tails.
    """
    counts = [half.counts for half in halves]
    drawn = _mean([np.concatenate([half.seen for half in halves])], [np.concatenate(counts)])
    crossed = _widened(_mean([half.unseen for half in halves], counts), math.sqrt(2 - alignment))
    low = crossed.low if end == "top" else eigenvalue.low - (drawn.value - drawn.low)
    high = eigenvalue.high + (drawn.high - drawn.value) if end == "top" else crossed.high
    value = (2 * eigenvalue.value + crossed.value) / 3
    return CrossFit(drawn, crossed, replace(drawn, value=value, low=low, high=high))


def _mean(groups: Sequence[Array], counts: Sequence[Array]) -> Estimate:
    """The mean over parts weighted by their counts, its error from the spread of each group about its own mean."""
    sizes, values = np.concatenate(counts), np.concatenate(groups)
    own = [np.full(len(x), np.average(x, weights=n)) for x, n in zip(groups, counts, strict=True)]
    errors = sizes / sizes.mean() * (values - np.concatenate(own))
    lost = (len(values) - 1) / (len(values) - len(groups))  # each group's mean takes a degree of freedom
    return _widened(mean_estimate(np.average(values, weights=sizes) + errors), math.sqrt(lost))


def _widened(estimate: Estimate, factor: float) -> Estimate:
    """The estimate with its error multiplied."""
    low, high = (estimate.value + factor * (side - estimate.value) for side in (estimate.low, estimate.high))
    return replace(estimate, stderr=factor * estimate.stderr, low=low, high=high)


_FEWEST: Final = 4  # parts, two in each half
_APART: Final = 0.01  # of the largest part: by how much the mean of the parts may miss the whole


@dataclass(frozen=True)
class SampledEigenvalue:
    r"""An extreme eigenvalue of the Hessian and its error over samples of data.

    With H the Hessian of the mean loss over the population that the samples come from, at the present parameters:
    in the mean `cross_fitted` :math:`\le \lambda_{max}(H) \le` `in_sample`, and for the bottom end the other way round.
    """

    in_sample: Estimate  # of all the data, with its numerical bound; biased outwards
    cross_fitted: Estimate  # covers the mean of v'Hv over the eigenvectors v of both halves; biased inwards
    population: Estimate  # covers the eigenvalue of H
    alignment: float  # squared cosine between the eigenvectors of the halves: 1 where the data settle it
    parts: int
    products: float  # in products with all the data
    seconds: float


def sampled_eigenvalue(
    objective: Objective,
    *,
    end: End = "top",
    parts: int = 32,
    rel: float = 0.01,
    max_products: int = 200,
    seed: int = 0,
) -> SampledEigenvalue:
    r"""An extreme eigenvalue with the error that comes from having this sample of data and no other.

    The samples are shuffled, cut into two halves A and B, and these into parts i. With :math:`v_A` the eigenvector of
    :math:`H_A`, the mean over the parts of B of :math:`v_A^\top H_i v_A` is an unbiased estimate of
    :math:`v_A^\top H v_A`, since `v_A` has not seen B, and that is at most :math:`\lambda_{max}(H)`. The halves change
    places, and `cross_fitted` is the mean of both. `in_sample` is the eigenvalue of all the data; by convexity
    :math:`\mathbb{E}\,\lambda_{max}(\hat H) \ge \lambda_{max}(H)`. The two hold :math:`\lambda_{max}(H)` between them.

    **Interval of the cross-fitted value.** From the spread of :math:`v^\top H_i v` over the parts, each half about its
    own mean, by `mean_estimate`, times the root of :math:`2 - (v_A^\top v_B)^2` for the dependence of the halves
    (`cross_fit`).

    **Population.** To second order the bias of `in_sample` is
    :math:`b = \sum_j (v_j^\top E v)^2 / (\lambda_1 - \lambda_j)`, and that of `cross_fitted`, whose vectors come from
    half of the data, is :math:`-2 b`. The value of `population` is therefore (2 `in_sample` + `cross_fitted`) / 3. Its
    interval does not lean on this: it goes from the lower end of `cross_fitted` to `in_sample` plus its own
    reach, so biases only widen it.

    Args:
        objective: The mean loss over independent samples of data which the parameters were not fitted to. On
            training data the numbers describe resampling at fixed parameters, not the population.
        end: `top` for the largest eigenvalue, `bottom` for the smallest.
        parts: In how many the data are cut, even and at least 4.
        rel: Of each of the three searches, as in `measure_spectrum`.
        max_products: The budget of each search; those on halves cost half.
        seed: Of the shuffle and of the searches.

    Returns:
        The estimates, each with its interval.

    Raises:
        ProbeError: `parts` is odd or below 4, there are fewer samples than parts, the data cannot be cut, or the
            loss is no mean over samples.

    Source:
        docs/measures/sampling_error.md, where it is derived; tested by its coverage on least squares.
    """
    _check(end, parts)
    begun = time.perf_counter()
    shuffle, *seeds = independent_seeds(seed, 4)
    halves = _cut(objective, 2, parts, shuffle)
    pieces = [_cut(half, parts // 2, parts, shuffle) for half in halves]
    first, second, whole = (
        _search(data, end, rel, max_products, own) for data, own in zip((*halves, objective), seeds, strict=True)
    )
    alignment = float(first.vector @ second.vector) ** 2
    forms = [_forms(half, whole.vector, other.vector) for half, other in zip(pieces, (second, first), strict=True)]
    found = cross_fit(whole.eigenvalue, forms, alignment, end)
    _refuse_no_mean(whole.eigenvalue.value, found.in_sample.value, forms)
    met = first.eigenvalue.converged and second.eigenvalue.converged
    return SampledEigenvalue(
        whole.eigenvalue,
        replace(found.cross_fitted, converged=met),
        replace(found.population, converged=met and whole.eigenvalue.converged),
        alignment,
        parts,
        (first.products + second.products) / 2 + whole.products + 2,
        time.perf_counter() - begun,
    )


@dataclass(frozen=True)
class _Extreme:
    """One end of a spectrum."""

    eigenvalue: Estimate
    vector: Tensor  # (n,) float64
    products: int


def _search(objective: Objective, end: End, rel: float, max_products: int, seed: int) -> _Extreme:
    """The extreme eigenpair of one objective."""
    found = measure_spectrum(
        hessian(objective), top=1, rel=rel, max_products=max_products, quantities=(end,), seed=seed
    )
    pairs = found.top if end == "top" else found.bottom
    assert pairs is not None  # it was asked for
    return _Extreme(pairs.estimate(0), pairs.vectors[:, 0].double(), found.products)


def _cut(objective: Objective, count: int, parts: int, seed: int) -> tuple[Objective, ...]:
    """The objective on so many parts of its data."""
    try:
        return objective.split(count, seed=seed)
    except ProbeError as error:
        raise ProbeError(f"the data cannot be cut into two halves of parts={parts} together: {error}") from error


def _forms(pieces: Sequence[Objective], seen: Tensor, unseen: Tensor) -> HalfForms:
    """The quadratic forms of the parts of one half along two vectors."""
    V = torch.stack([seen, unseen], 1)
    try:
        forms = np.array([((hessian(piece) @ V).double() * V).sum(0).tolist() for piece in pieces])
    except ProbeError:
        raise
    except Exception as error:  # a model may refuse so few samples, in words of its own
        fewest = min(piece.samples for piece in pieces)
        raise ProbeError(
            f"the loss fails on a part of {fewest} samples ({type(error).__name__}: {error}): take fewer parts, or "
            "mode='eval'"
        ) from error
    counts = np.array([math.fsum(piece.data.counts) for piece in pieces])
    return HalfForms(forms[:, 0], forms[:, 1], counts)


def _check(end: str, parts: int) -> None:
    """Refuse arguments out of their range."""
    if end not in get_args(End):
        raise ProbeError(f"end={end!r} is unknown: use one of {', '.join(get_args(End))}")
    if parts < _FEWEST or parts % 2:
        raise ProbeError(
            f"parts={parts}, need an even number of at least {_FEWEST}: half of them for each half of the data"
        )


def _refuse_no_mean(eigenvalue: float, mean: float, halves: Sequence[HalfForms]) -> None:
    """Refuse a loss whose curvature on all the data is not the mean of that on its parts."""
    forms = np.concatenate([half.seen for half in halves])
    if not abs(mean - eigenvalue) <= _APART * float(np.abs(forms).max()):
        raise ProbeError(
            f"the curvature is {eigenvalue:.6g} on all the data and {mean:.6g} in the mean of {len(forms)} parts: the "
            "loss is no mean over samples (batch norm in mode='frozen' or 'train', or a wrong count); use mode='eval'"
        )
