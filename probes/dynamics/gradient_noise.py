"""The gradient noise scale: how many samples a batch needs before its gradient is more signal than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.block_bootstrap import Array, block_bootstrap, block_length, quotient
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["NoiseScale", "noise_scale"]


@dataclass(frozen=True)
class NoiseScale:
    """Signal, noise and their ratio, means over the steps."""

    scale: Estimate  # tr(Sigma) / |g|^2, samples; a gap where |g|^2 is not above 0
    signal: Estimate  # |g|^2; it may fall below 0 by chance
    noise: Estimate  # tr(Sigma), of one sample; the same


def noise_scale(
    small: Sequence[float],
    large: Sequence[float],
    *,
    small_batch: float,
    large_batch: float,
    block: int | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> NoiseScale:
    r"""The gradient noise scale :math:`\mathrm{tr}\,\Sigma / |g|^2` from the norms of gradients at two batch sizes.

    A mean gradient over b samples has :math:`E|g_b|^2 = |g|^2 + \mathrm{tr}\,\Sigma / b`. Two sizes b < B give two
    equations, so both unknowns have estimates without bias at every step,

    .. math:: \widehat{|g|^2} = \frac{B |g_B|^2 - b |g_b|^2}{B - b}, \qquad
              \widehat{\mathrm{tr}\,\Sigma} = \frac{|g_b|^2 - |g_B|^2}{1/b - 1/B}.

    Each is averaged over the steps before the one is divided by the other: a mean of ratios would be ruled by the steps
    whose denominator is near 0.

    Args:
        small: `(T,)`, for each step the **squared** norm of the gradient of a batch of b samples; nan where there is
            none.
        large: `(T,)`, the same of B samples. The small batch may be part of the large one.
        small_batch: b, samples drawn independently.
        large_batch: B.
        block: Steps in a block of the bootstrap. Default: what an autoregressive series with the correlation found
            wants.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The three numbers. Where the signal is not above 0 in more than 2.5 % of the draws, the scale may be anything,
        and the upper end of its interval is infinite; the lower end is at least 0 (but where chance took the value
        below).

    Raises:
        ProbeError: the batch sizes are not 0 < b < B, the lengths differ, a square is negative, or there are fewer than
            two steps with both.

    Source:
        S. McCandlish et al. (2018), An empirical model of large-batch training, arXiv:1812.06162, appendix A.1.

    Example:
        >>> found = noise_scale([2.0, 2.0], [1.25, 1.25], small_batch=1, large_batch=4)
        >>> found.signal.value, found.noise.value, found.scale.value
        (1.0, 1.0, 1.0)
    """
    if not 0 < small_batch < large_batch < math.inf:
        raise ProbeError(f"batch sizes {small_batch:g} and {large_batch:g} are out of range, need 0 < small < large")
    of_small, of_large, known = _squares(small, large)
    b, B = small_batch, large_batch
    signal = np.where(known, (B * of_large - b * of_small) / (B - b), math.nan)
    noise = np.where(known, (of_small - of_large) / (1 / b - 1 / B), math.nan)
    ratio = np.nanmean(noise) / np.nanmean(signal) if np.nanmean(signal) > 0 else 0.0
    rows = np.stack([np.nan_to_num(noise), np.nan_to_num(signal), known.astype(np.float64)])

    def mean(row: int, series: Array) -> Estimate:
        chosen = np.stack([rows[row], rows[2]])
        return block_bootstrap(chosen, quotient, block=block or block_length(series), draws=draws, seed=seed)

    length = block or block_length(noise - ratio * signal)
    found = block_bootstrap(rows[:2], quotient, block=length, draws=draws, seed=seed)
    return NoiseScale(
        replace(found, low=max(found.low, min(found.value, 0.0))),  # no ratio of two squares is below 0
        mean(1, signal),
        mean(0, noise),
    )


def _squares(small: Sequence[float], large: Sequence[float]) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Both series of squared norms, and which steps have both."""
    of_small, of_large = np.asarray(small, dtype=np.float64), np.asarray(large, dtype=np.float64)
    if of_small.shape != of_large.shape or of_small.ndim != 1:
        raise ProbeError(f"{of_small.size} and {of_large.size} squared norms, need one of each size for every step")
    known = np.isfinite(of_small) & np.isfinite(of_large)
    if (count := int(known.sum())) < 2:
        raise ProbeError(f"{count} of {len(known)} steps have both squared norms, need at least 2")
    if (least := min(float(of_small[known].min()), float(of_large[known].min()))) < 0:
        raise ProbeError(f"a squared norm is {least:g}, need numbers of at least 0: pass |g|^2")
    return of_small, of_large, known
