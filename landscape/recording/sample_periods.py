"""Periods of the samples of tensors and spectra under the cap on the overhead."""

from __future__ import annotations

import math
from typing import Final

from lossscope.landscape.recording.cadence import Cadence
from lossscope.landscape.recording.cost_cap import CostCap
from lossscope.landscape.recording.faults import Faults
from lossscope.landscape.recording.overhead import Overhead

__all__ = ["SamplePeriods"]

_PART: Final = 0.5  # of the cap, for the samples: the rest is for curvature
_WINDOW: Final = 2.0  # seconds of training over which the samples are judged, at least
_SAMPLES: Final = 4  # samples in them, at least
_TOPIC: Final = "sample periods"  # of the warning, given once


class SamplePeriods:
    """Lengthen the periods of tensor and spectra samples where these alone take more than half of the cap.

    Args:
        cadence: The recording schedule.
        cap: Cap on the overhead.
        overhead: Clock of the recording.
        faults: Collects what is missing.
    """

    def __init__(self, cadence: Cadence, cap: CostCap, overhead: Overhead, faults: Faults) -> None:
        self._cadence, self._cap, self._overhead, self._faults = cadence, cap, overhead, faults
        self._rows = self._row_seconds()
        self._begin()

    def after(self, step: int) -> None:
        """Judge the samples after the rows of a step were written."""
        if not self._cap.limited:
            return
        rows = self._row_seconds()
        seconds, self._rows = rows - self._rows, rows
        if not (self._cadence.tensors(step) or self._cadence.spectra(step)):
            return
        self._samples += 1
        self._seconds += seconds
        elapsed = self._wall() - self._begun
        if self._samples < _SAMPLES or elapsed < _WINDOW:
            return
        allowed = _PART * self._cap.share * elapsed
        if self._seconds > allowed:
            self._lengthen(step, 2 ** math.ceil(math.log2(self._seconds / allowed)))
        self._begin()

    def _lengthen(self, step: int, factor: int) -> None:
        """Lengthen the periods, and say so. Nothing is missing at this step itself, so the warning has other words."""
        before, after = self._cadence.lengthen(factor)
        why = (
            f"norms are sampled every {after} steps from here on in place of every {before}, and spectra less often by "
            f"the same factor, as they alone take more than {100 * _PART:g} % of what the cap of "
            f"{100 * self._cap.share:g} % allows; {self._cap.remedy('instruments')}"
        )
        self._faults.tell(f"step {step}: {why}", topic=_TOPIC)
        self._faults.note("tensors", step, f"overhead: {why}", topic=_TOPIC)

    def _begin(self) -> None:
        """Begin a new window."""
        self._begun, self._samples, self._seconds = self._wall(), 0, 0.0

    def _wall(self) -> float:
        """Return the seconds so far without those of curvature."""
        return self._overhead.wall - self._overhead.seconds["curvature"]

    def _row_seconds(self) -> float:
        """Return the seconds that rows and samples took so far."""
        return self._overhead.seconds["instruments"] + self._overhead.seconds["spectra"]
