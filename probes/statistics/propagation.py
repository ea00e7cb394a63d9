"""Numbers made of several independent estimates: sums, shares, and the sum that terms balance at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lossscope.probes.statistics.estimate import Estimate

__all__ = [
    "balanced_sum_estimate",
    "independent_seeds",
    "linear_estimate",
    "part_shares",
    "square_estimate",
    "sum_estimate",
]


def linear_estimate(value: float, terms: Sequence[tuple[float, Estimate]]) -> Estimate:
    """A number whose error is a sum of slopes times the errors of independent estimates, in quadrature.

    Both sides of the interval are added in quadrature apart from one another, so skewed intervals stay skewed.

    Args:
        value: The number.
        terms: Slopes with estimates, at least one.

    Returns:
        The number with its error; exact where all terms are, and converged where all are.
    """
    gap = math.isnan(value)
    return Estimate(
        value,
        math.nan if gap else math.hypot(*(slope * term.stderr for slope, term in terms)),
        value - math.hypot(*(_reach(-slope, term) for slope, term in terms)),
        value + math.hypot(*(_reach(slope, term) for slope, term in terms)),
        sum(term.samples for _, term in terms),
        "exact" if all(term.bound == "exact" for _, term in terms) else "standard error",
        converged=not gap and all(term.converged for _, term in terms),
    )


def sum_estimate(terms: Sequence[Estimate]) -> Estimate:
    """The sum of independent estimates, errors in quadrature.

    Args:
        terms: At least one.

    Returns:
        The sum.
    """
    return linear_estimate(math.fsum(term.value for term in terms), [(1.0, term) for term in terms])


def part_shares(terms: Sequence[Estimate]) -> list[Estimate]:
    r"""The share of each of several independent estimates in their sum; the shares add up to one.

    A term is a part of the sum, so its error moves both: with :math:`x_l = t_l / T` and :math:`T = \sum t_m`,
    :math:`dx_l = ((1 - x_l)\, dt_l - x_l \sum_{m \ne l} dt_m) / T`, to first order.

    Args:
        terms: At least one.

    Returns:
        The shares; gaps where the interval of the sum reaches zero: there is then nothing to have a share of. Where
        terms differ in sign, a share can lie outside [0, 1].
    """
    whole = sum_estimate(terms)
    total = whole.value if whole.low > 0 or whole.high < 0 else math.nan
    shares = []
    for part in terms:
        x = part.value / total
        shares.append(linear_estimate(x, [(((term is part) - x) / total, term) for term in terms]))
    return shares


def balanced_sum_estimate(terms: Sequence[Estimate]) -> Estimate:
    """The least sum that positive terms can have when they are scaled and keep their product.

    By the inequality of the means it is reached where they are all equal: their geometric mean times their number.
    Errors are in quadrature on a logarithmic scale.

    Args:
        terms: At least one.

    Returns:
        The sum; a gap where a term is not positive. The interval reaches down to 0 where that of a term does.
    """
    if any(not term.value > 0 for term in terms):
        return linear_estimate(math.nan, [(1.0, term) for term in terms])
    logs = [(1 / len(terms), _log(term)) for term in terms]
    mean = linear_estimate(math.fsum(slope * term.value for slope, term in logs), logs)
    value, low, high = (len(terms) * math.exp(end) for end in (mean.value, mean.low, mean.high))
    return replace(mean, value=value, stderr=value * mean.stderr, low=low, high=high)


def square_estimate(root: Estimate) -> Estimate:
    """The square of an estimate that is not negative; the interval is mapped end by end.

    Args:
        root: The estimate.

    Returns:
        Its square.
    """
    low, high = max(root.low, 0.0) ** 2, root.high**2
    return replace(root, value=root.value**2, stderr=2 * root.value * root.stderr, low=low, high=high)


def _reach(slope: float, term: Estimate) -> float:
    """How far the interval of a term moves the number upwards."""
    end = term.high if slope > 0 else term.low
    return slope * (end - term.value) if slope else 0.0


def _log(term: Estimate) -> Estimate:
    """The logarithm of a positive estimate, its interval mapped end by end."""
    low, high = (math.log(end) if end > 0 else -math.inf for end in (term.low, term.high))
    return replace(term, value=math.log(term.value), stderr=term.stderr / term.value, low=low, high=high)


def independent_seeds(seed: int, count: int) -> list[int]:
    """Seeds whose random numbers have nothing to do with one another, always the same ones for one seed.

    Where errors are to add in quadrature, each measurement needs its own: equal seeds give equal probes to all
    operators of one size, and `seed + 1` may be the caller's next seed.

    Args:
        seed: Any integer.
        count: How many.

    Returns:
        Integers from 0 to 2^63 - 1; the first ones do not depend on `count`.
    """
    return [int(s) >> 1 for s in np.random.SeedSequence(seed % 2**64).generate_state(count, np.uint64)]
