"""Spikes of the loss: the step at which it leaves its recent past, and the norms of the steps before it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final

from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.recording.faults import Faults
from lossscope.landscape.recording.step_ring import RING, StepRing

__all__ = ["MOST_SPIKES", "SpikeReports", "spike_level"]

MOST_SPIKES: Final = 20  # of one recording
_MADS: Final = 8.0
_LEAST: Final = 16  # losses of which a level is known
_SMALLEST_MAD: Final = 0.01  # of the logarithm of the loss: a smaller rise than 8 % is no spike
_INSTRUMENT: Final = "spikes"


def spike_level(losses: Sequence[float]) -> float:
    """Return the level above which the next loss is a spike: median + 8 MAD of the losses before it.

    The MAD is the median of the absolute deviations from the median, 0.67 standard deviations of a normal
    distribution. Losses of minibatches have long tails, more so the smaller they are. So the rule holds for the
    logarithm of positive losses too, where a MAD counts as at least 0.01: the level is the higher one of the two.

    Args:
        losses: Finite losses.

    Returns:
        The level; infinite with fewer than 16 losses.

    Example:
        >>> round(spike_level([1.0, 1.1, 0.9, 1.0] * 4), 2)
        1.46
    """
    if len(losses) < _LEAST:
        return math.inf
    middle = median(losses)
    level = middle + _MADS * median(abs(one - middle) for one in losses)
    if min(losses) <= 0:
        return level
    logs = [math.log(one) for one in losses]
    middle = median(logs)
    mad = max(median(abs(one - middle) for one in logs), _SMALLEST_MAD)
    return max(level, math.exp(min(middle + _MADS * mad, 700.0)))


class SpikeReports:
    """Watch the loss of each step, and return the ring of norms where it spikes or is not finite.

    A spike is written at most once in 32 steps and 20 times in a recording; of a loss that stays not finite the first
    step alone. Without a loss, the norms are written where those of a sampled step are not finite.

    Args:
        ring: The norms of the last steps.
        faults: Told of the spikes that are not written.
    """

    def __init__(self, ring: StepRing, faults: Faults) -> None:
        self._ring, self._faults = ring, faults
        self._losses: deque[float] = deque(maxlen=RING)
        self._highest = -math.inf  # of the losses
        self._last = -math.inf  # step of the last spike
        self._lost = False  # the last loss was not finite
        self._count = 0
        self._seen = False  # a loss was given

    def rows(self, step: int, row: Row) -> list[Row]:
        """Return the rows of the table `spikes` of a step; none unless it is a spike.

        Args:
            step: Number of the step.
            row: Its row of `steps`, on the host.
        """
        loss = row.get("loss")
        if isinstance(loss, float | int):
            self._seen = True
            cause, level = self._of_loss(float(loss))
        else:
            cause, level = self._of_norms(row), None
        if not cause or step - self._last < RING:
            return []
        self._last = step
        self._count += 1
        if self._count > MOST_SPIKES:
            why = f"the norms of the first {MOST_SPIKES} spikes are written, and not those of this one"
            self._faults.note_quietly(_INSTRUMENT, step, why, ["norms"])
            return []
        # no known level of a loss that is not finite: a shorter past would be another one
        shared = {"step": step, "cause": cause, "loss": loss, "level": level}
        return [{**shared, **one} for one in self._ring.rows()]

    def note_absent(self, step: int) -> None:
        """Note that no loss was given, at the end of a recording with steps."""
        if step and not self._seen:
            why = "recorder.step() was called without a loss, so no spike of it can be seen: call recorder.step(loss)"
            self._faults.note_quietly(_INSTRUMENT, step, why, [])

    def _of_loss(self, loss: float) -> tuple[str, float | None]:
        """Return why a loss is a spike, "" if it is none, and the level that it passed."""
        if not math.isfinite(loss):
            cause, self._lost = "" if self._lost else "loss not finite", True
            return cause, None
        self._lost = False
        # the highest of the past is no spike twice, and sorting is left out at most steps
        level = spike_level(self._losses) if loss > self._highest else math.inf
        self._losses.append(loss)
        self._highest = max(self._losses)
        return ("loss", level) if loss > level else ("", None)

    def _of_norms(self, row: Row) -> str:
        """Return why the norms of a sampled step are a spike, "" if they are none."""
        norms = [row.get(name) for name in ("gradient_norm", "weight_norm")]
        lost = any(isinstance(one, float) and not math.isfinite(one) for one in norms)
        if all(one is None for one in norms):
            return ""
        cause = "" if self._lost or not lost else "norms not finite"
        self._lost = lost
        return cause
