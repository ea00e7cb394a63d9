"""Which layer leaves its own Taylor model first: the remainder that stands out before the others do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossscope.probes.errors import ProbeError

__all__ = ["OutlierLayer", "first_outlier_layer", "usual_sizes"]


@dataclass(frozen=True)
class OutlierLayer:
    """The layer whose remainder stood out first."""

    layer: str
    step: int  # row of the series
    ratio: float  # its remainder over its threshold at that step, above 1


def first_outlier_layer(
    remainders: npt.ArrayLike,
    layers: Sequence[str],
    *,
    factor: float = 10.0,
    window: int = 20,
    rounding: npt.ArrayLike = 0.0,
) -> OutlierLayer | None:
    """The layer whose remainder is the first to exceed its running threshold.

    The threshold of a layer at a step is `factor` times the median of its absolute remainders over the `window` steps
    before, which is its own usual size and not moved by single spikes, and at least `rounding`. A layer has none before
    `window / 2` steps of it are known, and where it is 0.

    Args:
        remainders: `(T, layers)`, `layer_remainders` of T steps in order, up to a spike of the loss, say; nan where
            one is missing.
        layers: Their names.
        factor: How many times its usual size a remainder must reach.
        window: Steps that the usual size is taken from, at least 2.
        rounding: Nats that the remainders of a step may be off by, `StepQuality.rounding`: what is smaller stands out
            from nothing. `(T,)`, as it grows with the loss, or one number for all steps.

    Returns:
        The layer, of several at one step that with the largest ratio; None where no remainder stood out.

    Raises:
        ProbeError: the shape does not fit the names, or `factor`, `window` or `rounding` is out of range.

    Source:
        docs/measures/step_quality.md.

    Example:
        >>> quiet = [[1e-3, 1e-3]] * 12
        >>> first_outlier_layer([*quiet, [1e-3, 0.02], [0.5, 0.5]], ["first", "second"])
        OutlierLayer(layer='second', step=12, ratio=2.0)
    """
    sizes = np.abs(np.asarray(remainders, dtype=np.float64))
    if sizes.ndim != 2 or sizes.shape[1] != len(layers):
        raise ProbeError(f"remainders of shape {sizes.shape} do not fit {len(layers)} layers: need (steps, layers)")
    if not 1 <= factor < math.inf:
        raise ProbeError(f"factor={factor:g} is out of range, need a finite number of at least 1")
    if window < 2:
        raise ProbeError(f"window={window} is out of range, need at least 2 steps")
    least = _each_step(rounding, len(sizes))
    thresholds = np.maximum(factor * usual_sizes(sizes, window=window), least[:, None])
    with np.errstate(invalid="ignore", over="ignore"):  # of a size that is not finite
        ratios = np.nan_to_num(sizes / np.where(thresholds > 0, thresholds, math.nan), nan=0.0)
    above = np.flatnonzero((ratios > 1).any(1))
    if not len(above):
        return None
    step = int(above[0])
    first = int(np.argmax(ratios[step]))
    return OutlierLayer(layers[first], step, float(ratios[step, first]))


def _each_step(rounding: npt.ArrayLike, steps: int) -> npt.NDArray[np.float64]:
    """The rounding of each step."""
    given = np.asarray(rounding, dtype=np.float64)
    if given.shape not in ((), (steps,)):
        raise ProbeError(f"rounding of shape {given.shape} does not fit {steps} steps: need one for each, or one")
    wrong = ~(np.isfinite(given) & (given >= 0))
    if wrong.any():
        raise ProbeError(f"rounding={given[wrong].flat[0]:g} is out of range, need finite numbers of at least 0 nats")
    return np.broadcast_to(given, (steps,))


def usual_sizes(remainders: npt.ArrayLike, *, window: int = 20) -> npt.NDArray[np.float64]:
    """What each layer's remainder usually is at each step: the median size over the `window` steps before.

    Args:
        remainders: `(T, layers)`; nan where one is missing.
        window: Steps.

    Returns:
        `(T, layers)`; nan where fewer than `window / 2` of them are known.
    """
    sizes = np.abs(np.asarray(remainders, dtype=np.float64))
    found = np.full(sizes.shape, math.nan)
    for step in range(1, len(sizes)):
        before = sizes[max(0, step - window) : step]
        enough = np.isfinite(before).sum(0) >= window / 2
        if enough.any():
            found[step, enough] = np.nanmedian(before[:, enough], axis=0)
    return found
