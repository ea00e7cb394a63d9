"""Estimate: a number with its uncertainty, which is exact, a standard error, a residual, a lower bound or a bracket."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from scipy.special import stdtrit

from lossscope.probes.errors import ProbeError

__all__ = ["Bound", "Estimate", "exact_estimate", "mean_estimate", "root_estimate", "rounded_estimate"]

Bound = Literal["exact", "standard error", "residual", "lower bound", "upper bound", "bracket"]
_RESOLVED: Final = 0.01  # largest relative rounding of a number that counts as known
_FAR: Final = (1e-90, 1e90)  # samples outside are scaled before their powers are taken
_STEEP: Final = 0.9  # share of the skewness at which Hall's cubic is flat and its inverse undefined


@dataclass(frozen=True)
class Estimate:
    """Measured number with its error.

    Attributes:
        value: The estimate; nan if the number does not exist or is missing.
        stderr: Standard error; 0.0 if exact, nan if the bound is of another kind.
        low: Lower end of the 95 % interval or of the bound.
        high: Upper end.
        samples: Number of random probes; 0 if nothing was sampled.
        bound: Meaning of `low` and `high`: `exact` (up to rounding, on the fixed data), `standard error` (a 95 %
            interval over random probes), `residual` (an eigenvalue lies between them) or `lower bound` (of a maximum:
            `low` is attained, `high` is never exceeded, nan if no upper bound is known), `upper bound` (of a minimum
            over what was tried: `high` is attained, `low` is nan if no lower bound is known) or `bracket` (of a zero:
            the function has opposite signs at both ends).
        residual: `|Ay - theta y|` of a Ritz pair, otherwise None.
        products: Number of operator products used.
        seconds: Wall time.
        converged: True if the requested tolerance is met.
        cause: Reason that it is not met, where no more products or probes would meet it; otherwise empty.
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
    cause: str = ""


def exact_estimate(value: float, *, products: int = 0, seconds: float = 0.0) -> Estimate:
    """Return an exact estimate: standard error 0, both ends at the value.

    Args:
        value: The number; nan if it does not exist, which makes the error nan too.
        products: Number of operator products used.
        seconds: Wall time.

    Returns:
        The estimate, exact on the fixed data.
    """
    missing = math.isnan(value)
    stderr = math.nan if missing else 0.0
    return Estimate(value, stderr, value, value, 0, "exact", products=products, seconds=seconds, converged=not missing)


def rounded_estimate(value: float, rounding: float, *, products: int = 0, seconds: float = 0.0) -> Estimate:
    """Return an exact estimate with the interval of its rounding.

    Args:
        value: The number; nan if it does not exist.
        rounding: Bound of its rounding error, absolute.
        products: Number of operator products used.
        seconds: Wall time.

    Returns:
        The estimate, exact on the fixed data up to rounding; converged if that is at most 1 % of the number.
    """
    found = exact_estimate(value, products=products, seconds=seconds)
    met = found.converged and rounding <= _RESOLVED * abs(value)
    known = found.converged and not met
    cause = f"its rounding error is up to {rounding:.2g}, where {_RESOLVED:g} of it is allowed" if known else ""
    return replace(found, low=value - rounding, high=value + rounding, converged=met, cause=cause)


def mean_estimate(samples: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> Estimate:
    r"""Estimate the mean of independent samples, with an interval that covers the true mean in 95 % of cases.

    Quadratic forms :math:`z^\top A z` are skewed like :math:`\chi^2` if few eigenvalues dominate; the symmetric
    t-interval then has too low a coverage. With the standard deviation :math:`s` and skewness :math:`g` of the samples
    and :math:`W = (\bar x - \mu)/s`, Hall's cubic

    .. math:: T(W) = W + g W^2 / 3 + g^2 W^3 / 27 + g / (6 m)

    removes the skewness to second order and is monotone, so both ends follow in closed form from
    :math:`T = \pm t_{0.975, \nu} / \sqrt m`. Heavy tails make :math:`s` less certain than :math:`m - 1` degrees of
    freedom imply; :math:`\nu = (m - 1)/2` is correct for an excess kurtosis of 2. Without skewness the interval is the
    t-interval with :math:`\nu` degrees of freedom.

    The inverse of the cubic has the slope :math:`(1 + g T)^{-2/3}`, which is unbounded at :math:`T = -1/g`. A few
    samples with one outlier reach that point, and an end of the interval is then off by ten standard errors; therefore
    :math:`|g|` is clipped to :math:`0.9/|T|`. Coverage is unchanged, and the widest intervals from ten samples become a
    third narrower.

    Args:
        samples: `m >= 2` numbers.

    Returns:
        The estimate; `stderr` is :math:`s / \sqrt m`.

    Raises:
        ProbeError: There are fewer than two samples.

    Source:
        P. Hall (1992), On the removal of skewness by transformation, J. R. Stat. Soc. B 54(1), 221-228.

    Example:
        >>> mean_estimate([2.0, 2.0, 2.0]).high
        2.0
    """
    x = np.asarray(samples, dtype=np.float64)
    m = len(x)
    if m < 2:
        raise ProbeError(f"a standard error requires at least 2 samples, got {m}: increase the number of samples")
    largest = float(np.abs(x).max())
    if _FAR[1] < largest < math.inf or 0.0 < largest < _FAR[0]:  # squares would over- or underflow
        near = mean_estimate(x / largest)
        value, stderr, low, high = (largest * one for one in (near.value, near.stderr, near.low, near.high))
        return Estimate(value, stderr, low, high, m, "standard error")
    mean = float(x.sum()) / m
    centered = x - mean
    squares = centered * centered
    total = float(squares.sum())
    deviation = math.sqrt(total / (m - 1))
    reach = float(stdtrit(max(1.0, (m - 1) / 2), 0.975)) / math.sqrt(m)
    skewness, most = 0.0, _STEEP / reach
    if total > m * (1e-14 * largest) ** 2:  # otherwise the samples agree up to rounding
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
    r"""Return the square root of an estimate, with the propagated error.

    The standard error is :math:`\sigma / (2 \sqrt x)` to first order; the ends of the interval are mapped, so its
    coverage is preserved.

    Args:
        square: Estimate of a nonnegative number.

    Returns:
        The estimate of its root.
    """
    value = math.sqrt(max(square.value, 0.0))
    stderr = square.stderr / (2 * value) if value > 0 else square.stderr
    low, high = (math.sqrt(max(end, 0.0)) for end in (square.low, square.high))
    return Estimate(value, stderr, low, high, square.samples, square.bound)


def _without_skew(target: float, skewness: float, m: int) -> float:
    """Return the `W` at which Hall's cubic equals `target`."""
    if abs(skewness) < 1e-6:
        return target
    return 3 / skewness * (float(np.cbrt(1 + skewness * (target - skewness / (6 * m)))) - 1)
