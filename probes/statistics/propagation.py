"""Error propagation for independent estimates: sums, shares, squares and balanced sums."""

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
    """Return a number with the linearly propagated errors of independent estimates, added in quadrature.

    The two sides of the interval are added in quadrature separately, so skewed intervals stay skewed.

    Args:
        value: The number.
        terms: Slopes with estimates, at least one.

    Returns:
        The number with its error; exact if all terms are, and converged if all are, else with the first cause of them.
    """
    missing = math.isnan(value)
    return Estimate(
        value,
        math.nan if missing else math.hypot(*(slope * term.stderr for slope, term in terms)),
        value - math.hypot(*(_reach(-slope, term) for slope, term in terms)),
        value + math.hypot(*(_reach(slope, term) for slope, term in terms)),
        sum(term.samples for _, term in terms),
        "exact" if all(term.bound == "exact" for _, term in terms) else "standard error",
        converged=not missing and all(term.converged for _, term in terms),
        cause=next((term.cause for _, term in terms if term.cause), ""),
    )


def sum_estimate(terms: Sequence[Estimate]) -> Estimate:
    """Return the sum of independent estimates, errors added in quadrature.

    Args:
        terms: At least one.

    Returns:
        The sum.
    """
    return linear_estimate(_total([term.value for term in terms]), [(1.0, term) for term in terms])


def part_shares(terms: Sequence[Estimate]) -> list[Estimate]:
    r"""Return the share of each of several independent estimates in their sum; the shares add up to one.

    A term is part of the sum, so its error affects both: with :math:`x_l = t_l / T` and :math:`T = \sum t_m`,
    :math:`dx_l = ((1 - x_l)\, dt_l - x_l \sum_{m \ne l} dt_m) / T`, to first order.

    Args:
        terms: At least one.

    Returns:
        The shares; nan if the interval of the sum includes zero, where shares are undefined. If terms differ in sign, a
        share can lie outside [0, 1].
    """
    whole = sum_estimate(terms)
    total = whole.value if whole.low > 0 or whole.high < 0 else math.nan
    shares = []
    for part in terms:
        x = part.value / total
        shares.append(linear_estimate(x, [(((term is part) - x) / total, term) for term in terms]))
    return shares


def balanced_sum_estimate(terms: Sequence[Estimate]) -> Estimate:
    """Return the smallest sum of positive terms that are rescaled with a fixed product.

    By the inequality of arithmetic and geometric means it is attained if they are all equal: the number of terms times
    their geometric mean. Errors are added in quadrature on a logarithmic scale.

    Args:
        terms: At least one.

    Returns:
        The sum; nan if a term is not positive. The interval extends to 0 if that of a term does.
    """
    if any(not term.value > 0 for term in terms):
        return linear_estimate(math.nan, [(1.0, term) for term in terms])
    logs = [(1 / len(terms), _log(term)) for term in terms]
    mean = linear_estimate(_total([slope * term.value for slope, term in logs]), logs)
    with np.errstate(over="ignore"):
        value, low, high = (len(terms) * float(np.exp(end)) for end in (mean.value, mean.low, mean.high))
    return replace(mean, value=value, stderr=value * mean.stderr, low=low, high=high)


def square_estimate(root: Estimate) -> Estimate:
    """Return the square of a nonnegative estimate; the ends of the interval are mapped.

    Args:
        root: Estimate of a nonnegative number.

    Returns:
        Its square.
    """
    low, high = max(root.low, 0.0) * max(root.low, 0.0), root.high * root.high
    return replace(root, value=root.value * root.value, stderr=2 * root.value * root.stderr, low=low, high=high)


def _total(values: Sequence[float]) -> float:
    """Return the sum of the values; the plain sum, infinite or nan, where an exact one does not exist."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


def _reach(slope: float, term: Estimate) -> float:
    """Return the upward shift of the number at the end of a term's interval."""
    end = term.high if slope > 0 else term.low
    return slope * (end - term.value) if slope else 0.0


def _log(term: Estimate) -> Estimate:
    """Return the logarithm of a positive estimate, with the ends of its interval mapped."""
    low, high = (math.log(end) if end > 0 else -math.inf for end in (term.low, term.high))
    return replace(term, value=math.log(term.value), stderr=term.stderr / term.value, low=low, high=high)


def independent_seeds(seed: int, count: int) -> list[int]:
    """Return seeds of independent random streams, reproducible from one seed.

    Errors add in quadrature only if each measurement has its own seed: equal seeds give equal probes for all operators
    of one size, and `seed + 1` may be the caller's next seed.

    Args:
        seed: Any integer.
        count: Number of seeds.

    Returns:
        Integers from 0 to 2^63 - 1; the first ones do not depend on `count`.
    """
    return [int(s) >> 1 for s in np.random.SeedSequence(seed % 2**64).generate_state(count, np.uint64)]
