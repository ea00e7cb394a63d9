"""Tests of series behind the rules: each takes numbers and returns a decision, so that null models can be simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lossscope.landscape.analysis.series import FloatArray

__all__ = ["collapsed", "does_not_ascend", "first_above", "first_outlier", "grows", "looks_random"]

_Z: Final = 2.576  # one-sided error of 0.5 %
_FEWEST_TREND: Final = 6  # values
_FEWEST_ASCENTS: Final = 20
_FEWEST_WINDOWS: Final = 6
_MADS: Final = 8.0
_PAST: Final = 16  # values before one, at least, and twice as many at most
_SMALLEST_MAD: Final = 0.02  # of a logarithm


def first_above(values: FloatArray, errors: FloatArray, limit: float = 1.0) -> int | None:
    """Return the place of the first value that is above a limit by more than its error; None without."""
    places = np.flatnonzero(values - np.nan_to_num(errors) > limit)
    return int(places[0]) if len(places) else None


def grows(values: FloatArray, errors: FloatArray) -> bool:
    """Return True if a series rises by Mann and Kendall's test at 0.5 %, and at its ends by more than their errors."""
    count = len(values)
    if count < _FEWEST_TREND:
        return False
    rises = float(np.sign(values[None, :] - values[:, None])[np.triu_indices(count, 1)].sum())
    spread = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    bounds = np.nan_to_num(errors)
    return (rises - 1) / spread > _Z and bool(values[-1] - bounds[-1] > values[0] + bounds[0])


def does_not_ascend(gaps: FloatArray) -> bool:
    """Return True if fewer ascents raise the loss than a coin would, beyond an error of 0.5 %."""
    count = len(gaps)
    if count < _FEWEST_ASCENTS:
        return False
    return (int((gaps > 0).sum()) + 0.5 - count / 2) / math.sqrt(count / 4) < -_Z


def looks_random(cosines: FloatArray) -> bool | None:
    """Return True if the mean cosine of independent estimates is within two standard errors of 0; None of too few."""
    count = len(cosines)
    if count < _FEWEST_WINDOWS:
        return None
    return bool(cosines.mean() < 2 * cosines.std(ddof=1) / math.sqrt(count))


def first_outlier(values: FloatArray) -> tuple[int, float] | None:
    """Return the place and the MADs of the first value far above its past; None without.

    The logarithm must be more than 8 MAD above the median of the 16 to 32 values before it, and above each of them by
    more than they are apart.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    for place in _candidates(logs):
        past = logs[max(0, place - 2 * _PAST) : place]
        past = past[np.isfinite(past)]
        if len(past) < _PAST or not np.isfinite(logs[place]):
            continue
        middle = float(np.median(past))
        mad = max(float(np.median(np.abs(past - middle))), _SMALLEST_MAD)
        rise = float(logs[place]) - middle
        if rise > _MADS * mad and rise > float(past.max() - past.min()):
            return int(place), rise / mad
    return None


def _candidates(logs: FloatArray) -> NDArray[np.intp]:
    """Return the places of values above their past by more than it spreads; those with gaps in it need another look."""
    places = _PAST + np.flatnonzero(_above_past(logs)[_PAST:])
    whole = places[places >= 2 * _PAST]
    if not len(whole):
        return places
    past = np.lib.stride_tricks.sliding_window_view(logs, 2 * _PAST)[whole - 2 * _PAST]
    with np.errstate(invalid="ignore"):
        rises = logs[whole] - np.median(past, axis=1)
        low = np.isfinite(past).all(axis=1) & (rises <= past.max(axis=1) - past.min(axis=1))
    return np.setdiff1d(places, whole[low])


def _above_past(logs: FloatArray) -> NDArray[np.bool_]:
    """Return where a value is above all of the 32 before it, as every outlier is; most values need no other look."""
    known = np.where(np.isfinite(logs), logs, -np.inf)
    before = np.concatenate([np.full(2 * _PAST, -np.inf), known[:-1]])
    highest: FloatArray = np.lib.stride_tricks.sliding_window_view(before, 2 * _PAST).max(axis=-1)
    return known > highest if len(logs) else np.empty(0, np.bool_)


def collapsed(ranks: Sequence[float], *, share: float = 0.5) -> bool:
    """Return True if the last two of at least three effective ranks are below a share of the first."""
    return len(ranks) > 2 and max(ranks[-2:]) < share * ranks[0]
