"""Gradient noise scale tr(Sigma) / |g|^2: the batch size at which signal and noise of the gradient are equal."""

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

    scale: Estimate  # tr(Sigma) / |g|^2, samples; nan if |g|^2 is not above 0
    signal: Estimate  # |g|^2; may be below 0 by chance
    noise: Estimate  # tr(Sigma) of one sample; may be below 0 by chance


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
    r"""Estimate the gradient noise scale :math:`\mathrm{tr}\,\Sigma / |g|^2` from gradient norms at two batch sizes.

    A mean gradient over b samples has :math:`E|g_b|^2 = |g|^2 + \mathrm{tr}\,\Sigma / b`. Two sizes b < B give two
    equations, and unbiased estimates of both unknowns at every step,

    .. math:: \widehat{|g|^2} = \frac{B |g_B|^2 - b |g_b|^2}{B - b}, \qquad
              \widehat{\mathrm{tr}\,\Sigma} = \frac{|g_b|^2 - |g_B|^2}{1/b - 1/B}.

    Each is averaged over the steps before dividing: a mean of ratios would be dominated by the steps whose denominator
    is near 0.

    Args:
        small: `(T,)`, for each step the **squared** norm of the gradient of a batch of b samples; nan where missing.
        large: `(T,)`, the same for B samples. The small batch may be part of the large one.
        small_batch: b, number of independent samples.
        large_batch: B.
        block: Steps in a bootstrap block. Default: the optimal length for an autoregressive series with the observed
            correlation.
        draws: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The three numbers. If the signal is not above 0 in more than 2.5 % of the draws, the scale is unbounded and the
        upper end of its interval infinite; the lower end is at least 0 (unless the value itself is below 0 by chance).

    Raises:
        ProbeError: The batch sizes are not 0 < b < B, the lengths differ, a square is negative, or there are fewer than
            two steps with both.

    Source:
        S. McCandlish et al. (2018), An empirical model of large-batch training, arXiv:1812.06162, appendix A.1.

    Example:
        >>> found = noise_scale([2.0, 2.0], [1.25, 1.25], small_batch=1, large_batch=4)
        >>> found.signal.value, found.noise.value, found.scale.value
        (1.0, 1.0, 1.0)
    """
    if not 0 < small_batch < large_batch < math.inf:
        raise ProbeError(f"batch sizes must satisfy 0 < small < large, got {small_batch:g} and {large_batch:g}")
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
        replace(found, low=max(found.low, min(found.value, 0.0))),  # a ratio of two squares is at least 0
        mean(1, signal),
        mean(0, noise),
    )


def _squares(small: Sequence[float], large: Sequence[float]) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Return both series of squared norms, and a mask of the steps that have both."""
    of_small, of_large = np.asarray(small, dtype=np.float64), np.asarray(large, dtype=np.float64)
    if of_small.shape != of_large.shape or of_small.ndim != 1:
        raise ProbeError(f"small and large must have one value per step, got {of_small.size} and {of_large.size}")
    known = np.isfinite(of_small) & np.isfinite(of_large)
    if (count := int(known.sum())) < 2:
        raise ProbeError(f"at least 2 steps must have both squared norms, got {count} of {len(known)}")
    if (least := min(float(of_small[known].min()), float(of_large[known].min()))) < 0:
        raise ProbeError(f"squared norms must be at least 0, got {least:g}: pass |g|^2")
    return of_small, of_large, known
