"""Sign test of the trigger that schedules second gradients, against a null model with random signs of phi.

An adaptive trigger is tested with `trigger_test`, the random timer with `timer_test`. `phi_autocorrelation` checks the
assumption of the test that the signs of phi are independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtr

from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.block_bootstrap import Array
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["PhiAutocorrelation", "TriggerTest", "phi_autocorrelation", "timer_test", "trigger_test"]


@dataclass(frozen=True)
class TriggerTest:
    """Rate of second gradients, and the share of firings that separates a trigger from its null model."""

    syncs: int  # steps that took a second gradient
    rate: float  # second gradients per step, from the first to the last of them; nan with fewer than two
    chance: float  # share of the steps before the cap at which the trigger fired; nan for k = 1
    share: Estimate  # adaptive: the same, among steps with |phi| beyond the threshold; timer: among all before the cap
    expected: float  # value of `share` under the null model: 1/2 for an adaptive trigger, Φ(-λ) for the timer


@dataclass(frozen=True, eq=False)
class PhiAutocorrelation:
    """Autocorrelation of phi around its mean, with the 95 % band of white noise."""

    lags: tuple[int, ...]  # steps
    values: Array  # (lags,); nan where no pair of steps was measured
    band: Array  # (lags,), 1.96 / sqrt(pairs): white noise stays within ± this at 95 % of the lags


def trigger_test(
    synced: Sequence[bool],
    phi: Sequence[float | None],
    thresholds: Sequence[float | None],
    *,
    k: int,
) -> TriggerTest:
    r"""Test whether an adaptive trigger fires more often than under random signs of phi.

    A trigger fires where phi is below its threshold :math:`-\tau_t`, which is computed from the sizes :math:`|\phi|`
    alone. Null model: the observed sizes and thresholds, with random signs. If phi is positive or negative with equal
    probability, independently of the past and of its size, then the trigger fires with probability 1/2 at each step
    where :math:`|\phi_t| > \tau_t` and never elsewhere. The null model assumes neither a distribution of phi nor a
    constant size, and it holds for any threshold: a running variance that is still too small, as at the start of a run,
    fires as often under random signs.

    At the cap the trigger takes a second gradient in any case, so `chance` and `share` count only the steps before the
    k-th of each interval between two second gradients. Under the null model `share` is binomial, and its interval is
    exact.

    Args:
        synced: For each step, in order, True if it took a second gradient.
        phi: For each step; None or nan where it was not measured.
        thresholds: For each step, the value that phi was compared with, at most 0; None or nan where there was none.
        k: Largest number of steps between two second gradients.

    Returns:
        The test. With fewer than two second gradients its numbers are nan.

    Raises:
        ProbeError: The lengths differ, a threshold is above 0, k is below 1, an interval is longer than k, or the
            trigger fired before the cap where |phi| was not beyond its threshold.

    Source:
        docs/measures/trigger_test.md; C. Clopper and E. Pearson (1934) for the interval of the share.

    Example:
        >>> phi, thresholds = [None, 0.3, -0.3, 0.1, -0.4], [None, -0.2, -0.2, -0.2, -0.2]
        >>> found = trigger_test([True, False, True, False, True], phi, thresholds, k=3)
        >>> found.rate, found.chance, round(found.share.value, 4), found.share.samples, found.expected
        (0.5, 0.5, 0.6667, 3, 0.5)
    """
    series, limits = _floats(phi), _floats(thresholds)
    if not len(synced) == len(series) == len(limits):
        raise ProbeError(
            f"synced, phi and thresholds must have one value per step, got {len(synced)}, {len(series)} and "
            f"{len(limits)}"
        )
    if (limits > 0).any():
        raise ProbeError(f"thresholds must be at most 0, got {np.nanmax(limits):g}")
    beyond = np.abs(series) > -limits
    steps, fired, before = _intervals(synced, k)
    if (steps[before] & ~beyond[before]).any():
        raise ProbeError(
            "the trigger fired before the cap where |phi| was not beyond its threshold: pass phi and thresholds of "
            "every step of the same run"
        )
    return _test(steps, fired, before, int(beyond[before].sum()), expected=0.5)


def timer_test(synced: Sequence[bool], *, lamda: float, k: int) -> TriggerTest:
    r"""Test whether a random timer fires with its nominal probability :math:`\Phi(-\lambda)`.

    The timer fires independently at each step, and after k steps at the latest. Its intervals are geometric, truncated
    at k, with a mean of :math:`(1 - (1 - p)^k) / p` steps for :math:`p = \Phi(-\lambda)`.

    Args:
        synced: For each step, in order, True if it took a second gradient.
        lamda: Threshold in standard deviations, which sets the probability.
        k: Largest number of steps between two second gradients.

    Returns:
        The test; `share` is over all steps before the cap, and `expected` is the nominal probability. With fewer than
        two second gradients its numbers are nan.

    Raises:
        ProbeError: `lamda` is negative or not finite, k is below 1, or an interval is longer than k.

    Source:
        docs/measures/trigger_test.md; C. Clopper and E. Pearson (1934) for the interval of the share.
    """
    if not (math.isfinite(lamda) and lamda >= 0):
        raise ProbeError(f"lamda must be finite and at least 0, got {lamda:g}")
    steps, fired, before = _intervals(synced, k)
    return _test(steps, fired, before, len(before), expected=float(ndtr(-lamda)))


def phi_autocorrelation(
    phi: Sequence[float | None], *, lags: Sequence[int] = tuple(range(1, 21))
) -> PhiAutocorrelation:
    r"""Return the autocorrelation of phi around its mean, with the band of white noise.

    The null model of `trigger_test` assumes independent signs. Over N pairs of steps the autocorrelation of white noise
    has the standard deviation :math:`1/\sqrt N`; one lag in twenty lies outside the band by chance.

    Args:
        phi: For each step, in order; None or nan where it was not measured.
        lags: Distances in steps, at least 1 each. Default: 1 to 20.

    Returns:
        The autocorrelation; all nan where phi does not vary.

    Raises:
        ProbeError: No lag is given, or one is below 1.

    Source:
        docs/measures/trigger_test.md.
    """
    if not lags or min(lags) < 1:
        raise ProbeError(f"lags must be at least 1 step each, got {tuple(lags)}")
    series = _floats(phi)
    known = np.isfinite(series)
    mean = float(series[known].mean()) if known.any() else math.nan
    centered = np.where(known, series - mean, 0.0)
    variance = float((centered**2).sum()) / known.sum() if known.any() else math.nan
    pairs = np.array([int((known[j:] & known[:-j]).sum()) for j in lags], dtype=np.float64)
    sums = np.array([float(centered[j:] @ centered[:-j]) if j < len(series) else 0.0 for j in lags])
    with np.errstate(divide="ignore", invalid="ignore"):
        count = np.where(pairs > 0, pairs, math.nan)
        scale = variance if variance > 0 else math.nan
        values, band = sums / count / scale, 1.96 / np.sqrt(count)
    return PhiAutocorrelation(tuple(lags), values, band)


def _floats(values: Sequence[float | None]) -> Array:
    """Return the values as a float64 array, with nan for None."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _intervals(
    synced: Sequence[bool], k: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return the steps as booleans, for each interval True if it ended before the cap, and all steps before the cap.

    An interval reaches from one second gradient to the next; the unfinished one at the end is left out.
    """
    if k < 1:
        raise ProbeError(f"k must be at least 1 step, got {k}")
    steps = np.asarray(synced, dtype=bool)
    begins = np.flatnonzero(steps)
    lengths = np.diff(begins)
    if len(lengths) and lengths.max() > k:
        raise ProbeError(
            f"{lengths.max()} steps between two second gradients exceed the cap k={k}: pass the k that the run was "
            "made with, and every step of it"
        )
    inside = np.arange(begins[0] + 1, begins[-1] + 1) if len(lengths) else np.empty(0, dtype=np.int64)
    before = inside[inside - begins[np.searchsorted(begins, inside) - 1] < k] if len(inside) else inside
    return steps, lengths < k, before


def _test(
    steps: npt.NDArray[np.bool_],
    fired: npt.NDArray[np.bool_],
    before: npt.NDArray[np.int64],
    possible: int,
    expected: float,
) -> TriggerTest:
    """Return the test, given the number of steps before the cap at which the trigger may fire under the null model."""
    begins, count = np.flatnonzero(steps), int(fired.sum())
    return TriggerTest(
        syncs=len(begins),
        rate=len(fired) / float(begins[-1] - begins[0]) if len(fired) else math.nan,
        chance=count / len(before) if len(before) else math.nan,
        share=_binomial_share(count, possible),
        expected=expected,
    )


def _binomial_share(hits: int, trials: int) -> Estimate:
    """Return hits / trials of independent trials, with the 95 % interval of Clopper and Pearson."""
    if not trials:
        return exact_estimate(math.nan)
    value = hits / trials
    low = float(betaincinv(hits, trials - hits + 1, 0.025)) if hits else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 0.975)) if hits < trials else 1.0
    return Estimate(value, math.sqrt(value * (1 - value) / trials), low, high, trials, "standard error")
