"""Stability of zeroth-order optimizers in the mean square: every eigenvalue counts, not the largest alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["zeroth_order_bounds", "zeroth_order_interval", "zeroth_order_rate", "zeroth_order_ratio"]

Array: TypeAlias = NDArray[np.float64]

_HALVINGS: Final = 200  # a bracket of two floats is narrower


def zeroth_order_ratio(
    eigenvalues: Sequence[float] | Array, lr: float, *, momentum: float = 0.0, dampening: float = 0.0
) -> float:
    r"""Return the mean-square edge ratio of zeroth-order descent: 1 is the edge of stability.

    The step is :math:`B \leftarrow b B + (1 - d) \hat g`, :math:`x \leftarrow x - \eta B` with the two-point estimate
    :math:`\hat g = u\, (L(x + \mu u) - L(x - \mu u)) / (2\mu)`, u Gaussian. On a positive definite quadratic the mean
    of :math:`|x|^2` goes to zero if and only if :math:`a \lambda_{\max} < 1 + b` and

    .. math:: \tfrac12 \sum_i \frac{a \lambda_i}{1 - a \lambda_i / (1 + b)} < 1, \qquad a = \eta \frac{1 - d}{1 - b}

    The left side is returned. Without momentum the domain is :math:`\eta\lambda_{\max} < 1`, for heavy ball (d = 0)
    :math:`\eta\lambda_{\max} < 1 - b^2`, for EMA momentum and Adam (d = b) :math:`\eta\lambda_{\max} < 1 + b`.

    Args:
        eigenvalues: Eigenvalues of H, at least 0 each; of :math:`P^{-1} H` for Adam with its second moment frozen.
        lr: Learning rate, finite and above 0.
        momentum: b, from 0 to below 1.
        dampening: d, from 0 to below 1; equal to `momentum` for EMA momentum and for Adam.

    Returns:
        The ratio; infinite outside of the domain.

    Raises:
        ProbeError: A setting or an eigenvalue is out of range.

    Source:
        M. Song et al. (2026), Zeroth-order optimization at the edge of stability, arXiv:2604.14669, theorems 1 to 3.

    Example:
        >>> round(zeroth_order_ratio([3.0, 1.0, 0.5, 0.2, 0.1], 0.2035286), 5)
        1.0
    """
    _check(lr, momentum, dampening)
    return _ratio(_spectrum(eigenvalues), lr * (1 - dampening) / (1 - momentum), momentum)


def zeroth_order_rate(eigenvalues: Sequence[float] | Array, *, momentum: float = 0.0, dampening: float = 0.0) -> float:
    """Return the largest learning rate at which zeroth-order descent is stable in the mean square.

    Args:
        eigenvalues: Eigenvalues of H, at least 0 each and one above; of P^-1 H for Adam.
        momentum: b, from 0 to below 1.
        dampening: d, from 0 to below 1.

    Returns:
        The learning rate at which `zeroth_order_ratio` is 1.

    Raises:
        ProbeError: A setting or an eigenvalue is out of range, or all eigenvalues are 0.
    """
    _check(1.0, momentum, dampening)
    found = _spectrum(eigenvalues)
    if not found.any():
        raise ProbeError("eigenvalues must not all be 0: without curvature every learning rate is stable")
    most = min(2 / float(found.sum()), (1 + momentum) / float(found.max()))
    return _edge(lambda rate: _ratio(found, rate, momentum), most) * (1 - momentum) / (1 - dampening)


def zeroth_order_bounds(
    trace: Estimate, lambda_max: Estimate, *, momentum: float = 0.0, dampening: float = 0.0
) -> tuple[float, float]:
    r"""Return bounds of the largest stable learning rate from the trace and the largest eigenvalue alone.

    .. math:: \frac{2}{\mathrm{tr} + 2\lambda_{\max}/(1 + b)} \le a^* \le \frac{2}{\mathrm{tr}}

    with a as in `zeroth_order_ratio`. They are close where no eigenvalue is a large part of the trace.

    Args:
        trace: Trace of H, which has no negative eigenvalue; of P^-1 H for Adam.
        lambda_max: Largest eigenvalue.
        momentum: b, from 0 to below 1.
        dampening: d, from 0 to below 1.

    Returns:
        Lower and upper bound of the learning rate, with the far ends of both intervals; the upper one is infinite if
        the interval of the trace reaches 0.

    Raises:
        ProbeError: A setting is out of range, or an upper end is not finite and above 0.
    """
    _check(1.0, momentum, dampening)
    for name, one in (("trace", trace), ("lambda_max", lambda_max)):
        if not 0 < one.high < math.inf:
            raise ProbeError(f"the upper end of {name} must be finite and above 0, got {one.high:g}")
    scale = (1 - momentum) / (1 - dampening)
    low = 2 / (trace.high + 2 * lambda_max.high / (1 + momentum))
    return scale * low, scale * 2 / trace.low if trace.low > 0 else math.inf


def zeroth_order_interval(trace: Estimate, top: Sequence[Estimate]) -> Estimate:
    r"""Return the largest stable learning rate of zeroth-order descent from the trace and the largest eigenvalues.

    Each summand of the condition, :math:`f(\lambda) = \tfrac12 a\lambda / (1 - a\lambda)`, is convex with slope at
    least a/2, so that the sum over the eigenvalues that are not known is largest if their trace is that of copies of
    the smallest known one, and smallest if it is spread over many. With the largest alone the bounds are at most as
    wide as those of `zeroth_order_bounds`; every further one narrows them.

    Args:
        trace: Trace of a matrix without negative eigenvalues, such as Gauss-Newton's.
        top: Its largest eigenvalues, descending.

    Returns:
        The learning rate; its bounds are those of the far ends of all intervals, the upper one infinite if nothing is
        known to be above 0. The value is the mean of the two rates that the values alone leave open.

    Raises:
        ProbeError: No eigenvalue is given, or the upper end of the trace or of the largest is not finite and above 0.

    Example:
        >>> from lossscope.probes.statistics.estimate import exact_estimate
        >>> found = zeroth_order_interval(exact_estimate(4.8), [exact_estimate(one) for one in (3.0, 1.0, 0.5)])
        >>> round(found.low, 4), round(found.high, 4)
        (0.2033, 0.2036)
    """
    if not top:
        raise ProbeError("top must hold the largest eigenvalue at least, got none")
    for name, one in (("trace", trace), ("the largest eigenvalue", top[0])):
        if not 0 < one.high < math.inf:
            raise ProbeError(f"the upper end of {name} must be finite and above 0, got {one.high:g}")
    values = [one.value for one in top]
    low = _rate_of(trace.high, [one.high for one in top], alike=True)
    high = _rate_of(trace.low, [one.low for one in top], alike=False)
    value = (_rate_of(trace.value, values, alike=True) + _rate_of(trace.value, values, alike=False)) / 2
    known = [trace, *top]
    return Estimate(
        value,
        math.nan,
        low,
        high,
        trace.samples,
        trace.bound if trace.samples else top[0].bound,
        converged=all(one.converged for one in known),
        cause=next((one.cause for one in known if one.cause), ""),
    )


def _rate_of(trace: float, top: Sequence[float], *, alike: bool) -> float:
    """Return the rate at which the sum over known eigenvalues and the rest of the trace is 1.

    Args:
        trace: Sum of all eigenvalues.
        top: The known ones; those below 0 count as 0.
        alike: True if the rest is that of copies of the smallest known one, False if it is spread over many.
    """
    found = np.maximum(np.asarray(top, dtype=np.float64), 0.0)
    rest, size = max(trace - float(found.sum()), 0.0), float(found.min())
    if not (rest > 0 or found.any()):
        return math.inf

    def total(rate: float) -> float:
        room = 1 - rate * size if alike else 1.0
        return _ratio(found, rate, 0.0) + (rate * rest / room / 2 if room > 0 else math.inf)

    return _edge(total, min(2 / (rest + float(found.sum())), 1 / float(found.max()) if found.any() else math.inf))


def _edge(total: Callable[[float], float], high: float) -> float:
    """Return the largest rate from 0 to another at which an increasing function is below 1."""
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if total(middle) < 1 else (low, middle)
    return low


def _ratio(eigenvalues: Array, rate: float, momentum: float) -> float:
    """Return half the sum of a l / (1 - a l / (1 + b)); infinite where a denominator is not above 0."""
    x = rate * eigenvalues
    room = 1 - x / (1 + momentum)
    return float((x / room).sum()) / 2 if bool((room > 0).all()) else math.inf


def _spectrum(eigenvalues: Sequence[float] | Array) -> Array:
    """Return eigenvalues as an array after checking that none is negative."""
    found = np.asarray(eigenvalues, dtype=np.float64).ravel()
    if not len(found):
        raise ProbeError("eigenvalues must be at least one number, got none")
    if not (np.isfinite(found).all() and float(found.min()) >= 0):
        raise ProbeError(
            f"eigenvalues must be finite and at least 0, got {float(found.min()):g}: along a negative one every "
            "learning rate is unstable"
        )
    return found


def _check(lr: float, momentum: float, dampening: float) -> None:
    """Raise if a setting is out of range."""
    if not (math.isfinite(lr) and lr > 0):
        raise ProbeError(f"lr must be finite and above 0, got {lr:g}")
    for name, decay in (("momentum", momentum), ("dampening", dampening)):
        if not 0 <= decay < 1:
            raise ProbeError(f"{name} must be in [0, 1), got {decay:g}")
