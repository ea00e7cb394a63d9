"""Whether a trigger of second gradients sees anything: its rate and its runs against those of pure noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtr

from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.block_bootstrap import Array, block_bootstrap, block_length, quotient
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["PhiMemory", "TriggerTest", "noise_chances", "phi_memory", "trigger_test"]


@dataclass(frozen=True, eq=False)
class TriggerTest:
    """What a trigger did, beside what it would do on noise."""

    rate: Estimate  # second gradients per step, from the first to the last of them
    null_rate: float  # the same for noise
    capped_rate: float  # p / (1 - (1-p)^k) with p = Φ(-λ): for normal noise whose deviation the trigger knows
    chance: Estimate  # that the trigger fires at a step before the cap; a gap for k = 1
    null_chance: float  # the same for noise
    share: Estimate  # of the steps before the cap at which noise may fire, those at which the trigger did
    null_share: float  # the same for noise: 1/2 of `noise_chances`
    runs: Array  # (k,), how many runs have 1, ..., k steps; the last is those that reached the cap
    null_runs: Array  # (k,), how many noise would have, of as many runs


@dataclass(frozen=True, eq=False)
class PhiMemory:
    """Mean and deviation of phi, its autocorrelation, and how far from 0 that of white noise comes."""

    mean: float  # nan where phi was never measured
    deviation: float  # standard deviation around the mean
    lags: tuple[int, ...]  # steps
    autocorrelation: Array  # (lags,); nan where no pair of steps was measured
    band: Array  # (lags,), 1.96 / sqrt(pairs): white noise is inside at 95 % of the lags


def noise_chances(phi: Sequence[float | None], thresholds: Sequence[float | None]) -> Array:
    r"""The chance that a trigger fires at each step, were phi noise of the sizes found: 1/2 or 0.

    A trigger fires where phi is below its threshold :math:`-\tau_t`, which is made from sizes :math:`|\phi|` alone. If
    phi is as likely above 0 as below, whatever was before and whatever its size, then given the sizes the trigger
    fires with probability 1/2 where :math:`|\phi_t| > \tau_t` and never elsewhere. Nothing else is taken for granted of
    phi: neither its distribution, nor that its size stays the same. Nor of the threshold: a running variance that is
    still too small, as at the start of a run, lets noise fire as often.

    Args:
        phi: For each step, in order; None or nan where it was not measured.
        thresholds: What phi was held against, at most 0 each; None or nan where there was none.

    Returns:
        `(T,)`, 0 where either is missing.

    Raises:
        ProbeError: the lengths differ, or a threshold is above 0.

    Source:
        docs/measures/trigger_test.md.

    Example:
        >>> noise_chances([None, 0.3, -0.3, 0.1], [None, -0.2, -0.2, -0.2]).tolist()
        [0.0, 0.5, 0.5, 0.0]
    """
    sizes, lines = np.abs(_numbers(phi)), _numbers(thresholds)
    if len(sizes) != len(lines):
        raise ProbeError(f"{len(sizes)} phi and {len(lines)} thresholds, need one of each for every step")
    if (lines > 0).any():
        raise ProbeError(f"a threshold is {np.nanmax(lines):g}, need numbers of at most 0")
    return np.where(sizes > -lines, 0.5, 0.0)


def trigger_test(
    synced: Sequence[bool],
    *,
    lamda: float,
    k: int,
    chances: Sequence[float] | Array | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> TriggerTest:
    r"""The rate of second gradients against that of a trigger that only ever sees noise.

    On noise the trigger fires at a step with a chance :math:`p_t` that is known beforehand, and after k steps at the
    latest. A run that begins at step s then has j < k steps with probability
    :math:`p_{s+j} \prod_{i<j} (1 - p_{s+i})`, and reaches the cap with what is left. Where p is the same at every step,
    runs are geometric, cut off at k: their mean is

    .. math:: \sum_{j=0}^{k-1} (1-p)^j = \frac{1 - (1 - p)^k}{p}.

    At the cap nobody can tell whether the trigger fired, so `chance` and `share` count the steps of a run before the
    k-th. The share is what tells a trigger from noise: its interval is exact for noise, whatever the size of the run.

    Args:
        synced: For each step, in order, whether it took a second gradient.
        lamda: The trigger's threshold in standard deviations of phi.
        k: The most steps between two second gradients.
        chances: `(T,)`, of noise to fire at each step, equal where they are above 0: `noise_chances` of the steps.
            Default: :math:`\Phi(-\lambda)` at every step, which is that of normal noise against a threshold of its true
            standard deviation, and of the random timer.
        draws: Of the bootstrap over runs, in blocks as long as their lengths depend on one another.
        seed: Of the bootstrap.

    Returns:
        The audit. With fewer than two complete runs rate and chance are gaps. Where the trigger fired at none of n
        steps before the cap, or at all of them, draws have no spread, and the open end of the chance is that of n
        independent steps, :math:`1 - 0.025^{1/n}` from the other.

    Raises:
        ProbeError: k is below 1, a run is longer than k, lambda is negative or not finite, chances do not fit the
            steps, or the trigger fired before the cap where the chance is 0.

    Source:
        docs/measures/trigger_test.md; C. Clopper and E. Pearson (1934) for the interval of the share.

    Example:
        >>> found = trigger_test([True, False, False] * 4, lamda=0.0, k=3)
        >>> round(found.rate.value, 4), round(found.null_rate, 4), found.runs.tolist()
        (0.3333, 0.5714, [0.0, 0.0, 3.0])
    """
    if k < 1:
        raise ProbeError(f"k={k} is out of range, need at least 1 step")
    if not (math.isfinite(lamda) and lamda >= 0):
        raise ProbeError(f"lamda={lamda:g} is out of range, need a finite number of at least 0")
    steps = np.asarray(synced, dtype=bool)
    begins = np.flatnonzero(steps)
    lengths, before = np.diff(begins), _before_cap(begins, k)
    p = np.full(len(steps), float(ndtr(-lamda))) if chances is None else np.asarray(chances, dtype=np.float64)
    _refuse_another_run(steps, p, lengths, before, k)
    fired, tried = (lengths < k).astype(np.float64), np.minimum(lengths, k - 1).astype(np.float64)
    usual = float(p[before].mean()) if len(before) else float(p.mean()) if len(p) else math.nan
    null, possible = _null_runs(p, usual, begins, k), before[p[before] > 0]
    mean_run = float(null @ np.arange(1, k + 1))
    return TriggerTest(
        _share(np.ones(len(lengths)), lengths.astype(np.float64), draws, seed),
        len(lengths) / mean_run if mean_run > 0 else math.nan,
        _capped_rate(float(ndtr(-lamda)), k),
        _chance(fired, tried, draws, seed),
        usual,
        _exact_share(int(fired.sum()), len(possible)),
        float(p[possible].mean()) if len(possible) else math.nan,
        np.bincount(lengths, minlength=k + 1)[1:].astype(np.float64),
        null,
    )


def phi_memory(phi: Sequence[float | None], *, lags: Sequence[int] = tuple(range(1, 21))) -> PhiMemory:
    r"""The autocorrelation of phi around its mean, beside the band of white noise.

    The null of `trigger_test` takes the signs of phi for independent of each other. With N pairs of steps, an
    autocorrelation of white noise has the standard deviation :math:`1/\sqrt N`; one lag in twenty lies outside by
    chance.

    Args:
        phi: For each step, in order; None or nan where it was not measured.
        lags: Steps apart, at least 1 each.

    Returns:
        The autocorrelation; all gaps where phi does not vary.

    Raises:
        ProbeError: a lag is below 1.

    Source:
        docs/measures/trigger_test.md.
    """
    if not lags or min(lags) < 1:
        raise ProbeError(f"lags={tuple(lags)} are out of range, need at least 1 step each")
    series = _numbers(phi)
    known = np.isfinite(series)
    mean = float(series[known].mean()) if known.any() else math.nan
    centered = np.where(known, series - mean, 0.0)
    variance = float((centered**2).sum()) / known.sum() if known.any() else math.nan
    pairs = np.array([int((known[j:] & known[:-j]).sum()) for j in lags], dtype=np.float64)
    sums = np.array([float(centered[j:] @ centered[:-j]) if j < len(series) else 0.0 for j in lags])
    with np.errstate(divide="ignore", invalid="ignore"):
        count = np.where(pairs > 0, pairs, math.nan)
        scale = variance if variance > 0 else math.nan
        autocorrelation, band = sums / count / scale, 1.96 / np.sqrt(count)
    return PhiMemory(mean, math.sqrt(variance), tuple(lags), autocorrelation, band)


def _numbers(values: Sequence[float | None]) -> Array:
    """The values as an array, nan where one is missing."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _refuse_another_run(
    steps: npt.NDArray[np.bool_],
    chances: Array,
    lengths: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    k: int,
) -> None:
    """Refuse steps that no trigger of this cap and these chances has taken."""
    if len(lengths) and lengths.max() > k:
        raise ProbeError(
            f"a run of {lengths.max()} steps without a second gradient is longer than the cap k={k}: pass the k that "
            "the run was made with, and every step of it"
        )
    if chances.shape != steps.shape or not ((chances >= 0) & (chances <= 1)).all():
        raise ProbeError(
            f"chances of shape {chances.shape} do not fit {len(steps)} steps: need one from 0 to 1 for each"
        )
    if (steps[before] & (chances[before] == 0)).any():
        raise ProbeError(
            "the trigger fired before the cap where phi was not below its threshold: pass phi and threshold of every "
            "step of the same run"
        )


def _before_cap(begins: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """The steps of all complete runs at which the trigger was free to fire or not."""
    if len(begins) < 2:
        return np.empty(0, dtype=np.int64)
    steps = np.arange(begins[0] + 1, begins[-1] + 1)
    return steps[steps - begins[np.searchsorted(begins, steps) - 1] < k]


def _null_runs(chances: Array, usual: float, begins: npt.NDArray[np.int64], k: int) -> Array:
    """How many runs of each length noise would have, of those that begin where runs did; past the end, as usual."""
    padded = np.append(chances, np.full(k, usual))
    stays, found = np.ones(max(len(begins) - 1, 0)), np.zeros(k)
    for j in range(1, k):
        p = padded[begins[:-1] + j]
        found[j - 1] = float((stays * p).sum())
        stays = stays * (1 - p)
    found[k - 1] = float(stays.sum())
    return found


def _capped_rate(p: float, k: int) -> float:
    """Second gradients per step where each step has the chance p, and the k-th none is left without."""
    return p / -math.expm1(k * math.log1p(-p)) if p > 0 else 1 / k


def _exact_share(fired: int, of: int) -> Estimate:
    """A share of independent steps, with the interval of Clopper and Pearson."""
    if not of:
        return exact_estimate(math.nan)
    value = fired / of
    low = float(betaincinv(fired, of - fired + 1, 0.025)) if fired else 0.0
    high = float(betaincinv(fired + 1, of - fired, 0.975)) if fired < of else 1.0
    return Estimate(value, math.sqrt(value * (1 - value) / of), low, high, of, "standard error")


def _share(above: Array, below: Array, draws: int, seed: int) -> Estimate:
    """The ratio of two sums over the runs, from 0 to 1, with an interval."""
    if len(above) < 2 or not below.sum() > 0:
        return exact_estimate(math.nan)
    block = block_length(above - above.sum() / below.sum() * below)
    found = block_bootstrap(np.stack([above, below]), quotient, block=block, draws=draws, seed=seed)
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def _chance(fired: Array, tried: Array, draws: int, seed: int) -> Estimate:
    """The share of the steps before the cap at which the trigger fired; one-sided where that is none or all."""
    found, steps = _share(fired, tried, draws, seed), float(tried.sum())
    if found.value not in (0.0, 1.0):
        return found
    reach = 1 - 0.025 ** (1 / steps)
    ends = (0.0, reach) if found.value == 0 else (1 - reach, 1.0)
    return replace(found, stderr=math.nan, low=ends[0], high=ends[1])
