"""Sampling error of an extreme eigenvalue: cross-fitting, and an interval for the population eigenvalue."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import on_parts
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.statistics.estimate import Estimate, mean_estimate
from lossscope.probes.statistics.propagation import independent_seeds
from lossscope.probes.sums import dot, row_dots

__all__ = ["End", "SampledEigenvalue", "sampled_eigenvalue"]

Array = np.ndarray[Any, Any]
End = Literal["top", "bottom"]
_FEWEST: Final = 4  # parts, two in each half
_TOLERANCE: Final = 0.01  # allowed difference between the mean of the parts and the whole, over the largest part


@dataclass(frozen=True)
class _HalfForms:
    """Curvature v'H_i v of each part i of one half of the data, along two directions."""

    in_sample: Array  # (p,) along the eigenvector of all the data
    crossed: Array  # (p,) along the eigenvector of the other half
    counts: Array  # (p,) number of terms in the loss of each part


@dataclass(frozen=True)
class _CrossFit:
    """Means of the parts, and the population eigenvalue that follows."""

    in_sample: Estimate  # mean along the eigenvector of all the data
    cross_fitted: Estimate  # mean along the eigenvectors of the other half
    population: Estimate  # eigenvalue of the population


def _cross_fit(eigenvalue: Estimate, halves: Sequence[_HalfForms], alignment: float, end: End) -> _CrossFit:
    r"""Estimate the cross-fitted eigenvalue, with an interval for the population eigenvalue.

    With E the error of a half's Hessian, :math:`E_A, E_B` independent with mean zero, the errors along both directions
    are :math:`e_A = v_A^\top E_B v_A` and :math:`e_B = v_B^\top E_A v_B`. With :math:`v_A = v + P E_A v + \dots`, P
    the resolvent on the complement of v, all terms of their covariance with a single E vanish, and

    .. math:: \mathrm{E}\, e_A e_B = 4\, \mathrm{E}\, (v^\top E_B P E_A v)^2

    to lowest order. For rotation-invariant E that is :math:`1 - (v_A^\top v_B)^2` times :math:`\mathrm{E}\, e_A^2` on
    average, and less if the noise is largest along v, as it is for the top eigenvector of :math:`x x^\top`. The squared
    error is therefore that of independent halves times :math:`2 - (v_A^\top v_B)^2`: correct if the data determine the
    eigenvector, and conservative, up to the error of two perfectly correlated halves, if they do not.

    The spread of each half is about its own mean, since its direction differs.

    Args:
        eigenvalue: Eigenvalue of all the data, with its numerical bound.
        halves: Quadratic forms of both halves.
        alignment: :math:`(v_A^\top v_B)^2`.
        end: End of the spectrum.

    Returns:
        The estimates.

    Source:
        Derived here; tested by coverage over seeds, with and without a spectral gap, and with heavy tails.
    """
    counts = [half.counts for half in halves]
    drawn = _mean([np.concatenate([half.in_sample for half in halves])], [np.concatenate(counts)])
    crossed = _widened(_mean([half.crossed for half in halves], counts), math.sqrt(2 - alignment))
    low = crossed.low if end == "top" else eigenvalue.low - (drawn.value - drawn.low)
    high = eigenvalue.high + (drawn.high - drawn.value) if end == "top" else crossed.high
    value = (2 * eigenvalue.value + crossed.value) / 3
    return _CrossFit(drawn, crossed, replace(drawn, value=value, low=low, high=high))


def _mean(groups: Sequence[Array], counts: Sequence[Array]) -> Estimate:
    """Return the count-weighted mean over parts, its error from the spread of each group about its own mean."""
    sizes, values = np.concatenate(counts), np.concatenate(groups)
    own = [np.full(len(x), np.average(x, weights=n)) for x, n in zip(groups, counts, strict=True)]
    errors = sizes / sizes.mean() * (values - np.concatenate(own))
    lost = (len(values) - 1) / (len(values) - len(groups))  # each group's mean takes a degree of freedom
    return _widened(mean_estimate(np.average(values, weights=sizes) + errors), math.sqrt(lost))


def _widened(estimate: Estimate, factor: float) -> Estimate:
    """Return the estimate with its error multiplied by a factor."""
    low, high = (estimate.value + factor * (side - estimate.value) for side in (estimate.low, estimate.high))
    return replace(estimate, stderr=factor * estimate.stderr, low=low, high=high)


@dataclass(frozen=True)
class SampledEigenvalue:
    r"""Extreme eigenvalue of the Hessian with its sampling error over the data.

    With H the Hessian of the mean loss over the population that the samples come from, at the current parameters:
    in expectation `cross_fitted` :math:`\le \lambda_{max}(H) \le` `in_sample`, and the reverse for the bottom end.
    """

    in_sample: Estimate  # eigenvalue of all the data, with its numerical bound; biased outwards
    cross_fitted: Estimate  # covers the mean of v'Hv over the eigenvectors v of both halves; biased inwards
    population: Estimate  # covers the eigenvalue of H
    alignment: float  # squared cosine between the eigenvectors of the halves: 1 if the data determine it
    parts: int
    products: float  # in units of products with all the data
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
    r"""Estimate an extreme eigenvalue with its sampling error over the data.

    The samples are shuffled, split into two halves A and B, and these into parts i. With :math:`v_A` the eigenvector of
    :math:`H_A`, the mean over the parts of B of :math:`v_A^\top H_i v_A` is an unbiased estimate of
    :math:`v_A^\top H v_A`, since `v_A` is independent of B, and that is at most :math:`\lambda_{max}(H)`. The halves
    are then exchanged, and `cross_fitted` is the mean of both. `in_sample` is the eigenvalue of all the data; by
    convexity :math:`\mathbb{E}\,\lambda_{max}(\hat H) \ge \lambda_{max}(H)`. The two bracket :math:`\lambda_{max}(H)`.

    **Interval of the cross-fitted value.** It follows from the spread of :math:`v^\top H_i v` over the parts, each half
    about its own mean, by `mean_estimate`, multiplied by the root of :math:`2 - (v_A^\top v_B)^2` for the dependence of
    the halves.

    **Population.** To second order the bias of `in_sample` is
    :math:`b = \sum_j (v_j^\top E v)^2 / (\lambda_1 - \lambda_j)`, and the bias of `cross_fitted`, whose vectors come
    from half of the data, is :math:`-2 b`. The value of `population` is therefore
    (2 `in_sample` + `cross_fitted`) / 3. Its interval does not rely on this: it extends from the lower end of
    `cross_fitted` to `in_sample` plus the half width of the mean over its parts, so biases only widen it.

    Args:
        objective: The mean loss over independent samples that the parameters were not fitted to. On training data the
            numbers describe resampling at fixed parameters, not the population.
        end: `top` for the largest eigenvalue, `bottom` for the smallest.
        parts: Number of parts the data are split into, even and at least 4.
        rel: Relative tolerance of each of the three eigenvalue searches, as in `measure_spectrum`.
        max_products: Budget of each search; products with a half cost half.
        seed: Seed of the shuffle and of the searches.

    Returns:
        The estimates, each with its interval.

    Raises:
        ProbeError: `parts` is odd or below 4, there are fewer samples than parts, the data cannot be split, or the
            loss is not a mean over samples.

    Source:
        docs/measures/sampling_error.md, where it is derived; tested by its coverage on least squares.
    """
    _check(objective, end, parts)
    begun = time.perf_counter()
    shuffle, *seeds = independent_seeds(seed, 4)
    halves = _split(objective, 2, parts, shuffle)
    pieces = [_split(half, parts // 2, parts, shuffle) for half in halves]
    first, second, whole = (
        _search(data, end, rel, max_products, own) for data, own in zip((*halves, objective), seeds, strict=True)
    )
    alignment = float(dot(first.vector, second.vector)) ** 2
    forms = [_forms(half, whole.vector, other.vector) for half, other in zip(pieces, (second, first), strict=True)]
    found = _cross_fit(whole.eigenvalue, forms, alignment, end)
    _check_mean(whole.eigenvalue.value, found.in_sample.value, forms)
    met = first.eigenvalue.converged and second.eigenvalue.converged
    cause = first.eigenvalue.cause or second.eigenvalue.cause
    return SampledEigenvalue(
        whole.eigenvalue,
        replace(found.cross_fitted, converged=met, cause=cause),
        replace(
            found.population,
            converged=met and whole.eigenvalue.converged,
            cause=cause or whole.eigenvalue.cause,
        ),
        alignment,
        parts,
        (first.products + second.products) / 2 + whole.products + 2,
        time.perf_counter() - begun,
    )


@dataclass(frozen=True)
class _Extreme:
    """Extreme eigenpair of one objective."""

    eigenvalue: Estimate
    vector: Tensor  # (n,) float64
    products: int


def _search(objective: Objective, end: End, rel: float, max_products: int, seed: int) -> _Extreme:
    """Compute the extreme eigenpair of one objective."""
    found = measure_spectrum(
        hessian(objective), top=1, rel=rel, max_products=max_products, quantities=(end,), seed=seed
    )
    pairs = found.top if end == "top" else found.bottom
    assert pairs is not None  # requested above
    return _Extreme(pairs.estimate(0), pairs.vectors[:, 0].double(), found.products)


def _split(objective: Objective, count: int, parts: int, seed: int) -> tuple[Objective, ...]:
    """Split the objective by its data into `count` objectives."""
    try:
        return objective.split(count, seed=seed)
    except ProbeError as error:
        raise ProbeError(f"the data cannot be split into two halves with parts={parts} in total: {error}") from error


def _forms(pieces: Sequence[Objective], whole: Tensor, other: Tensor) -> _HalfForms:
    """Return the quadratic forms of the parts of one half along the vectors of the whole and of the other half."""
    V = torch.stack([whole, other], 1)
    with on_parts(piece.samples for piece in pieces):
        forms = np.array([row_dots((hessian(piece) @ V).mT, V.mT).tolist() for piece in pieces])
    counts = np.array([math.fsum(piece.data.counts) for piece in pieces])
    return _HalfForms(forms[:, 0], forms[:, 1], counts)


def _check(objective: Objective, end: str, parts: int) -> None:
    """Raise if an argument is out of range."""
    if end not in get_args(End):
        raise ProbeError(f"end must be one of {', '.join(map(repr, get_args(End)))}, got {end!r}")
    if parts < _FEWEST or parts % 2:
        raise ProbeError(f"parts must be even and at least {_FEWEST}, got {parts}: each half of the data gets half")
    if not objective.data.additive:
        raise ProbeError(
            "sampled_eigenvalue requires a loss that is a mean over samples, got an objective with additive=False: its "
            "batches cannot be split"
        )


def _check_mean(eigenvalue: float, mean: float, halves: Sequence[_HalfForms]) -> None:
    """Raise if the curvature on all the data is not the mean of the curvature on its parts."""
    forms = np.concatenate([half.in_sample for half in halves])
    if not abs(mean - eigenvalue) <= _TOLERANCE * float(np.abs(forms).max()):
        raise ProbeError(
            f"the curvature is {eigenvalue:.6g} on all the data but {mean:.6g} as the mean over {len(forms)} parts: "
            "the loss must be a mean over samples (batch norm in mode='frozen' or 'train' is not, nor is a wrong "
            "count); use mode='eval'"
        )
