"""A number with its uncertainty: exact, sampled with a standard error, or bounded by a residual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.special import stdtrit

from lossscope.probes.errors import ProbeError

__all__ = ["Bound", "Estimate", "exact_estimate", "mean_estimate", "root_estimate"]

Bound = Literal["exact", "standard error", "residual", "lower bound"]
_STEEP: Final = 0.9  # of the way to where Hall's cubic is flat, and its inverse no longer tells anything


@dataclass(frozen=True)
class Estimate:
    """A measured number and what is known about its error.

    Attributes:
        value: The estimate; nan is a gap: there is no such number here.
        stderr: Standard error; 0.0 where exact, nan where the bound is of another kind.
        low: Lower end of the 95 % interval or of the bound.
        high: Upper end.
        samples: Random probes behind it; 0 where nothing was drawn.
        bound: What `low` and `high` are: `exact` (up to rounding, on the fixed data), `standard error`
            (a 95 % interval over random probes), `residual` (an eigenvalue lies between them) or `lower bound` (a
            maximum: `low` is reached, `high` is never exceeded, nan where nothing is known from above).
        residual: `|Ay - theta y|` of a Ritz pair, None elsewhere.
        products: Products with the operator that were spent.
        seconds: Wall time that was spent.
        converged: Whether the bound that was asked for is met.
    """

    value: float
    stderr: float
    low: float
    high: float
    samples: int
    bound: Bound
    residual: float | None = None
    products: int = 0
    seconds: float = 0.0
    converged: bool = True


def exact_estimate(value: float, *, products: int = 0, seconds: float = 0.0) -> Estimate:
    """A number that involves no chance: standard error 0, both ends at the value.

    Args:
        value: The number. Where it does not exist pass nan: the error is then a gap too.
        products: Products spent.
        seconds: Wall time spent.

    Returns:
        The estimate, exact on the data it was taken from.
    """
    gap = math.isnan(value)
    return Estimate(
        value, math.nan if gap else 0.0, value, value, 0, "exact", products=products, seconds=seconds, converged=not gap
    )


def mean_estimate(samples: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> Estimate:
    r"""The mean of independent samples with an interval that covers the true mean in 95 % of cases.

    Quadratic forms :math:`z^\top A z` are skewed like :math:`\chi^2` where few eigenvalues dominate; the
    symmetric t-interval then covers too seldom. With the samples' standard deviation
    :math:`s`, skewness :math:`g` and :math:`W = (\bar x - \mu)/s`, Hall's cubic

    .. math:: T(W) = W + g W^2 / 3 + g^2 W^3 / 27 + g / (6 m)

    removes the skew to second order and is monotone, so both ends are found in closed form from
    :math:`T = \pm t_{0.975, \nu} / \sqrt m`. Heavy tails make :math:`s` less sure than :math:`m - 1` degrees of freedom
    say; :math:`\nu = (m - 1)/2` is right for an excess kurtosis of 2. Without skew it is the t-interval of so
    many degrees.

    The inverse of the cubic has the slope :math:`(1 + g T)^{-2/3}`, without a bound at :math:`T = -1/g`. A few samples
    of which one lies apart reach that point, and an end of the interval goes off by ten standard errors; so
    :math:`|g|` counts up to :math:`0.9/|T|` only. Coverage stays what it was, and the widest intervals from ten
    samples become a third narrower.

    Args:
        samples: `m >= 2` numbers.

    Returns:
        The estimate; `stderr` is :math:`s / \sqrt m`.

    Raises:
        ProbeError: fewer than two samples.

    Source:
        P. Hall (1992), On the removal of skewness by transformation, J. R. Stat. Soc. B 54(1), 221-228.

    Example:
        >>> mean_estimate([2.0, 2.0, 2.0]).high
        2.0
    """
    x = np.asarray(samples, dtype=np.float64)
    m = len(x)
    if m < 2:
        raise ProbeError(f"{m} sample has no standard error, need at least 2: raise the number of samples")
    mean = float(x.sum()) / m
    centered = x - mean
    squares = centered * centered
    total = float(squares.sum())
    deviation = math.sqrt(total / (m - 1))
    reach = float(stdtrit(max(1.0, (m - 1) / 2), 0.975)) / math.sqrt(m)
    skewness, most = 0.0, _STEEP / reach
    if total > m * (1e-14 * float(np.abs(x).max())) ** 2:  # the samples do not agree up to rounding
        skewness = min(max(math.sqrt(m) * float(centered @ squares) / total**1.5, -most), most)
    return Estimate(
        mean,
        deviation / math.sqrt(m),
        mean - deviation * _without_skew(reach, skewness, m),
        mean - deviation * _without_skew(-reach, skewness, m),
        m,
        "standard error",
    )


def root_estimate(square: Estimate) -> Estimate:
    r"""The square root of an estimated number, with the error that follows.

    The standard error is :math:`\sigma / (2 \sqrt x)` to first order; the interval is mapped end by end, so it
    covers as often as the one it came from.

    Args:
        square: An estimate of a number that is not negative.

    Returns:
        The estimate of its root.
    """
    value = math.sqrt(max(square.value, 0.0))
    stderr = square.stderr / (2 * value) if value > 0 else square.stderr
    low, high = (math.sqrt(max(end, 0.0)) for end in (square.low, square.high))
    return Estimate(value, stderr, low, high, square.samples, square.bound)


def _without_skew(target: float, skewness: float, m: int) -> float:
    """The `W` at which Hall's cubic equals `target`."""
    if abs(skewness) < 1e-6:
        return target
    return 3 / skewness * (float(np.cbrt(1 + skewness * (target - skewness / (6 * m)))) - 1)
