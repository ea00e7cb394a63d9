"""Whether a trigger of second gradients sees anything: its rate and its runs against those of pure noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from lossscope.probes.block_bootstrap import Array, block_bootstrap, block_length
from lossscope.probes.errors import ProbeError
from lossscope.probes.estimate import Estimate, exact_estimate

__all__ = ["PhiMemory", "TriggerAudit", "phi_memory", "trigger_audit"]


@dataclass(frozen=True, eq=False)
class TriggerAudit:
    """What a trigger did, beside what it would do if phi were white noise around 0."""

    rate: Estimate  # second gradients per step, from the first to the last of them
    null_rate: float  # the same for noise: p / (1 - (1 - p)^k)
    null_interval: float  # steps from one second gradient to the next, for noise: (1 - (1 - p)^k) / p
    chance: Estimate  # that the trigger fires at a step before the cap; a gap for k = 1
    null_chance: float  # p = Phi(-lambda)
    runs: Array  # (k,), how many runs have 1, ..., k steps; the last is those that reached the cap
    null_runs: Array  # (k,), how many noise would have, of as many runs


@dataclass(frozen=True, eq=False)
class PhiMemory:
    """Autocorrelation of phi, and how far from 0 that of white noise comes."""

    lags: tuple[int, ...]  # steps
    autocorrelation: Array  # (lags,); nan where no pair of steps was measured
    band: Array  # (lags,), 1.96 / sqrt(pairs): white noise is inside at 95 % of the lags


def trigger_audit(synced: Sequence[bool], *, lamda: float, k: int, draws: int = 2000, seed: int = 0) -> TriggerAudit:
    r"""The rate of second gradients against that of a trigger that only ever sees noise.

    The trigger fires where phi is below :math:`-\lambda` of its standard deviations, which normal noise is with
    :math:`p = \Phi(-\lambda)` at any step, and after k steps at the latest. Runs from one second gradient to the next
    then are geometric, cut off at k: their mean is

    .. math:: \sum_{j=0}^{k-1} (1-p)^j = \frac{1 - (1 - p)^k}{p}.

    At the cap nobody can tell whether the trigger fired, so its own `chance` counts the steps of a run before the k-th.

    Args:
        synced: For each step, in order, whether it took a second gradient.
        lamda: The trigger's threshold in standard deviations of phi.
        k: The most steps between two second gradients.
        draws: Of the bootstrap over runs, in blocks as long as their lengths depend on one another.
        seed: Of the bootstrap.

    Returns:
        The audit. With fewer than two complete runs rate and chance are gaps. Where the trigger fired at none of n
        steps before the cap, or at all of them, draws have no spread, and the open end of the chance is that of n
        independent steps, :math:`1 - 0.025^{1/n}` from the other.

    Raises:
        ProbeError: k is below 1, a run is longer than k, or lambda is negative or not finite.

    Source:
        docs/measures/trigger_audit.md.

    Example:
        >>> found = trigger_audit([True, False, False] * 4, lamda=0.0, k=3)
        >>> round(found.rate.value, 4), round(found.null_rate, 4), found.runs.tolist()
        (0.3333, 0.5714, [0.0, 0.0, 3.0])
    """
    if k < 1:
        raise ProbeError(f"k={k} is out of range, need at least 1 step")
    if not (math.isfinite(lamda) and lamda >= 0):
        raise ProbeError(f"lamda={lamda:g} is out of range, need a finite number of at least 0")
    lengths = np.diff(np.flatnonzero(np.asarray(synced, dtype=bool)))
    if len(lengths) and lengths.max() > k:
        raise ProbeError(
            f"a run of {lengths.max()} steps without a second gradient is longer than the cap k={k}: pass the k that "
            "the run was made with, and every step of it"
        )
    p = float(ndtr(-lamda))
    stays = (1 - p) ** np.arange(k)
    null = np.append(p * stays[:-1], stays[-1])
    interval = float(stays.sum())
    fired, tried = (lengths < k).astype(np.float64), np.minimum(lengths, k - 1).astype(np.float64)
    return TriggerAudit(
        _share(np.ones(len(lengths)), lengths.astype(np.float64), draws, seed),
        1 / interval,
        interval,
        _chance(fired, tried, draws, seed),
        p,
        np.bincount(lengths, minlength=k + 1)[1:].astype(np.float64),
        len(lengths) * null,
    )


def phi_memory(phi: Sequence[float | None], *, lags: Sequence[int] = tuple(range(1, 21))) -> PhiMemory:
    r"""The autocorrelation of phi around its mean, beside the band of white noise.

    The null of `trigger_audit` takes phi for white noise. With N pairs of steps, an autocorrelation of white noise has
    the standard deviation :math:`1/\sqrt N`; one lag in twenty lies outside by chance.

    Args:
        phi: For each step, in order; None or nan where it was not measured.
        lags: Steps apart, at least 1 each.

    Returns:
        The autocorrelation; all gaps where phi does not vary.

    Raises:
        ProbeError: a lag is below 1.

    Source:
        docs/measures/trigger_audit.md.
    """
    if not lags or min(lags) < 1:
        raise ProbeError(f"lags={tuple(lags)} are out of range, need at least 1 step each")
    series = np.array([math.nan if value is None else value for value in phi], dtype=np.float64)
    known = np.isfinite(series)
    centred = np.where(known, series - (series[known].mean() if known.any() else 0.0), 0.0)
    variance = float((centred**2).sum()) / max(int(known.sum()), 1)
    pairs = np.array([int((known[j:] & known[:-j]).sum()) for j in lags], dtype=np.float64)
    sums = np.array([float(centred[j:] @ centred[:-j]) if j < len(series) else 0.0 for j in lags])
    with np.errstate(divide="ignore", invalid="ignore"):
        count = np.where(pairs > 0, pairs, math.nan)
        scale = variance if variance > 0 else math.nan
        return PhiMemory(tuple(lags), sums / count / scale, 1.96 / np.sqrt(count))


def _share(above: Array, below: Array, draws: int, seed: int) -> Estimate:
    """The ratio of two sums over the runs, from 0 to 1, with an interval."""
    if len(above) < 2 or not below.sum() > 0:
        return exact_estimate(math.nan)
    block = block_length(above - above.sum() / below.sum() * below)
    found = block_bootstrap(np.stack([above, below]), _quotient, block=block, draws=draws, seed=seed)
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def _chance(fired: Array, tried: Array, draws: int, seed: int) -> Estimate:
    """The share of the steps before the cap at which the trigger fired; one-sided where that is none or all."""
    found, steps = _share(fired, tried, draws, seed), float(tried.sum())
    if found.value not in (0.0, 1.0):
        return found
    reach = 1 - 0.025 ** (1 / steps)
    ends = (0.0, reach) if found.value == 0 else (1 - reach, 1.0)
    return replace(found, stderr=math.nan, low=ends[0], high=ends[1])


def _quotient(sums: Array) -> Array:
    """The first over the second; nan where that is 0."""
    found: Array = np.where(sums[1] > 0, sums[0] / np.where(sums[1] > 0, sums[1], 1.0), math.nan)
    return found
