"""First outlier layer: the layer whose Taylor remainder is the first to exceed a running multiple of its median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lossscope.probes.errors import ProbeError

__all__ = ["OutlierLayer", "first_outlier_layer", "running_median"]

_AT_ONCE: Final = 1024  # steps whose windows are copied at once


@dataclass(frozen=True)
class OutlierLayer:
    """Layer whose remainder was the first outlier."""

    layer: str
    step: int  # row of the series
    ratio: float  # remainder over its threshold at that step, above 1


def first_outlier_layer(
    remainders: npt.ArrayLike,
    layers: Sequence[str],
    *,
    factor: float = 10.0,
    window: int = 20,
    rounding: npt.ArrayLike = 0.0,
) -> OutlierLayer | None:
    """Find the layer whose remainder is the first to exceed its running threshold.

    The threshold of a layer at a step is `factor` times the median of its absolute remainders over the previous
    `window` steps, which is robust to single spikes, and at least `rounding`. A layer has no threshold before
    `window / 2` of its remainders are known, nor if the threshold is 0.

    Args:
        remainders: `(T, layers)`, `layer_remainders` of T steps in order, for example up to a loss spike; nan where
            missing.
        layers: Names of the layers.
        factor: Ratio of a remainder to its running median from which it is an outlier.
        window: Number of steps in the running median, at least 2.
        rounding: Rounding error bound of the remainders of a step in the unit of the loss, `StepQuality.rounding`:
            smaller remainders are never outliers. `(T,)`, since it grows with the loss, or one number for all steps.

    Returns:
        The first outlier; among several at one step the one with the largest ratio. None if there is no outlier.

    Raises:
        ProbeError: The shape does not match the names, or `factor`, `window` or `rounding` is out of range.

    Source:
        docs/measures/step_quality.md.

    Example:
        >>> quiet = [[1e-3, 1e-3]] * 12
        >>> first_outlier_layer([*quiet, [1e-3, 0.02], [0.5, 0.5]], ["first", "second"])
        OutlierLayer(layer='second', step=12, ratio=2.0)
    """
    sizes = np.abs(np.asarray(remainders, dtype=np.float64))
    if sizes.ndim != 2 or sizes.shape[1] != len(layers):
        raise ProbeError(f"remainders must have shape (steps, {len(layers)}), one column per layer, got {sizes.shape}")
    if not 1 <= factor < math.inf:
        raise ProbeError(f"factor must be finite and at least 1, got {factor:g}")
    if window < 2:
        raise ProbeError(f"window must be at least 2 steps, got {window}")
    least = _each_step(rounding, len(sizes))
    thresholds = np.maximum(factor * running_median(sizes, window=window), least[:, None])
    with np.errstate(invalid="ignore", over="ignore"):  # a remainder may be infinite
        ratios = np.nan_to_num(sizes / np.where(thresholds > 0, thresholds, math.nan), nan=0.0)
    above = np.flatnonzero((ratios > 1).any(1))
    if not len(above):
        return None
    step = int(above[0])
    first = int(np.argmax(ratios[step]))
    return OutlierLayer(layers[first], step, float(ratios[step, first]))


def _each_step(rounding: npt.ArrayLike, steps: int) -> npt.NDArray[np.float64]:
    """Return the rounding of each step."""
    given = np.asarray(rounding, dtype=np.float64)
    if given.shape not in ((), (steps,)):
        raise ProbeError(f"rounding must be one number or have shape ({steps},), got shape {given.shape}")
    wrong = ~(np.isfinite(given) & (given >= 0))
    if wrong.any():
        raise ProbeError(f"rounding must be finite and at least 0 nats, got {given[wrong].flat[0]:g}")
    return np.broadcast_to(given, (steps,))


def running_median(remainders: npt.ArrayLike, *, window: int = 20) -> npt.NDArray[np.float64]:
    """Return the running median of each layer's absolute remainder over the previous `window` steps.

    Args:
        remainders: `(T, layers)`; nan where missing.
        window: Number of steps.

    Returns:
        `(T, layers)`; nan where fewer than `window / 2` values are known.
    """
    sizes = np.abs(np.asarray(remainders, dtype=np.float64))
    found = np.full(sizes.shape, math.nan)
    if not sizes.size:
        return found
    padded = np.concatenate([np.full((window, sizes.shape[1]), math.nan), sizes[:-1]])
    view = np.lib.stride_tricks.sliding_window_view(padded, window, axis=0)  # (T, layers, window)
    for begin in range(0, len(view), _AT_ONCE):
        before = view[begin : begin + _AT_ONCE]
        enough = np.isfinite(before).sum(-1) >= window / 2
        if enough.any():
            found[begin : begin + _AT_ONCE][enough] = np.nanmedian(before[enough], axis=-1)
    return found
