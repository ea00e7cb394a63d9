"""Divergence of a run: the step at which its loss stopped being finite or rose far above its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import numpy as np

from lossscope.landscape.analysis.series import FloatArray, probe_series

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["Divergence", "divergence_of", "first_divergence"]

_LONGEST_BLOCK: Final = 10  # steps in a block
_BLOCKS: Final = 10  # a shorter run has shorter blocks
_FACTOR: Final = 2.0  # times the size of the start, above the start
_MARGIN: Final = 1.0  # in the unit of the loss, in addition
_STEEPEST: Final = 1000.0  # times the start, without a margin: for a loss that starts near 0
_KNOWN: WeakKeyDictionary[Run, Divergence | None] = WeakKeyDictionary()


@dataclass(frozen=True)
class Divergence:
    """Divergence of a loss; `kind` says which of the two came to be."""

    step: int  # optimizer step at which it was first seen
    finite: bool  # True: the loss rose far above its start; False: it stopped being finite
    before: float | None  # last finite loss before the step
    start: float | None  # first finite loss
    highest: float | None  # largest finite loss
    end: float | None  # last loss; None if it is not finite


def divergence_of(run: Run) -> Divergence | None:
    """Return the divergence of a run's training loss, or of its loss on the fixed data if it recorded no other.

    Args:
        run: Any run; its table of steps must be readable.

    Returns:
        The divergence, see `first_divergence`; None if the loss neither rose nor was lost, or was never recorded.
    """
    if run not in _KNOWN:
        _KNOWN[run] = _of(run)
    return _KNOWN[run]


@np.errstate(all="ignore")  # the loss of a run that diverges may be 1e308
def _of(run: Run) -> Divergence | None:
    """Return the divergence of a run."""
    steps, losses = run.numbers("steps", "step", "loss")
    if not np.isnan(losses).all():
        return first_divergence(steps.astype(np.int64), losses)
    series = probe_series(run, "loss")
    return first_divergence(series.x.astype(np.int64), series.y)


def first_divergence(steps: np.ndarray[tuple[int], np.dtype[np.int64]], losses: FloatArray) -> Divergence | None:
    """Return the first step at which a loss stopped being finite, or rose far above its start.

    A loss is no longer finite from its first infinite value on, or from the first of its missing values at the end: nan
    is stored as missing. Missing values at the end do not count if there were as many in a row before, as in a loop
    that passes its loss at some of its steps only.

    A loss rose far above its start if the median of a block of consecutive losses is above

        min(start + 2 |start| + 1, 1000 start),

    where blocks have a tenth of the losses, at least 1 and at most 10, and the start is the first loss or the median of
    the first block, whichever is smaller; the second limit needs a positive median of the first block, and is 1000
    times that. The step is the first of the losses above the limit that lead to that block. A rise that is over by the
    end counts.

    Args:
        steps: `(n,)`, ascending.
        losses: `(n,)`, nan where missing.

    Returns:
        The divergence; None if there is none.

    Example:
        >>> first_divergence(np.arange(1, 4), np.array([2.0, 9.0, 80.0])).step
        2
        >>> first_divergence(np.arange(1, 4), np.array([2.0, np.inf, np.nan])).finite
        False
    """
    known = np.isfinite(losses)
    lost = _lost(losses, known)
    if lost is None and not known.any():
        return None
    finite = losses[known]
    start, highest = (float(finite[0]), float(finite.max())) if len(finite) else (None, None)
    end = float(losses[-1]) if known[-1] else None
    if lost is not None:
        earlier = losses[:lost][known[:lost]]
        return Divergence(int(steps[lost]), False, float(earlier[-1]) if len(earlier) else None, start, highest, end)
    risen = _risen(finite)
    if risen is None:
        return None
    before = float(finite[risen - 1]) if risen else None
    return Divergence(int(steps[known][risen]), True, before, start, highest, end)


def _lost(losses: FloatArray, known: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int | None:
    """Return the place from which the loss is no longer finite; None if it is finite to the end."""
    infinite = np.flatnonzero(np.isinf(losses))
    first = int(infinite[0]) if len(infinite) else None
    places = np.flatnonzero(~np.isnan(losses))
    if not len(places):
        return first
    missing_at_end = len(losses) - 1 - int(places[-1])
    longest_gap = int(np.diff(places, prepend=-1).max()) - 1
    if missing_at_end > longest_gap:
        first = int(places[-1]) + 1 if first is None else first
    return first


def _risen(losses: FloatArray) -> int | None:
    """Return the place of the first loss of a block whose median is far above the start; None if there is none."""
    size = min(max(len(losses) // _BLOCKS, 1), _LONGEST_BLOCK)
    whole = len(losses) // size * size
    medians = np.median(losses[:whole].reshape(-1, size), axis=1)
    if whole < len(losses):
        medians = np.append(medians, np.median(losses[whole:]))
    first = float(medians[0])
    start = min(float(losses[0]), first)
    limit = start + _FACTOR * abs(start) + _MARGIN
    limit = min(limit, _STEEPEST * first) if first > 0 else limit
    above = np.flatnonzero(medians > limit)
    if not len(above):
        return None
    begin = int(above[0]) * size
    first_above = begin + int(np.argmax(losses[begin : begin + size] > limit))
    while first_above and losses[first_above - 1] > limit:  # the rise may begin in the block before
        first_above -= 1
    return first_above
