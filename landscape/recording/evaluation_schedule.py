"""Schedule of curvature evaluations under the cap on the overhead: which take place, and what is cut from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from lossscope.landscape.recording.cadence import Cadence
from lossscope.landscape.recording.cost_cap import CostCap
from lossscope.landscape.recording.curvature_evaluations import CurvatureEvaluations
from lossscope.landscape.recording.faults import Faults, say
from lossscope.landscape.recording.overhead import Overhead

__all__ = ["EvaluationSchedule", "Extent"]


_CUT_SHARE: Final = 0.5  # of what is left, for a cut evaluation: the rest adds up until a whole one fits


@dataclass(frozen=True)
class Extent:
    """Extent of one curvature evaluation."""

    long: bool = True  # the whole panel is due
    cap: CostCap | None = None  # what does not fit under it is left out
    at_least_lambda_max: bool = False  # lambda_max is measured with a few products where it does not fit


class EvaluationSchedule:
    """Curvature evaluations that are due and fit under the cap.

    An evaluation takes place as a whole if it fits. Otherwise it is cut to what fits into half of what is left: the
    loss, `lambda_max` with fewer products, a trace, and what takes few products. The first one is cut to
    `lambda_max` at least, the last one to all that is left. One of which not even the loss fits is missing if its step
    is fixed, and otherwise postponed to the next step of the schedule. Where the end of the run is planned, the other
    evaluations leave what a whole last one takes, or if that cannot fit what the loss and `lambda_max` take.

    Args:
        curvature: The evaluations, whose cost is predicted.
        cadence: Steps at which they are due.
        cap: Cap on the overhead.
        overhead: Clock of the recording.
        faults: Collects what is missing.
        name: Name of the run, for the line that tells the price.
        kept: Bytes that the recorder holds between evaluations, for that line too.

    Attributes:
        evaluated: Step of the last evaluation; None before the first.
    """

    def __init__(
        self,
        curvature: CurvatureEvaluations,
        cadence: Cadence,
        cap: CostCap,
        overhead: Overhead,
        faults: Faults,
        name: str,
        kept: int,
    ) -> None:
        self.evaluated: int | None = None
        self._curvature, self._cadence, self._cap = curvature, cadence, cap
        self._overhead, self._faults, self._name, self._kept = overhead, faults, name, kept

    def due(self, step: int, *, stepped: bool) -> Extent | None:
        """Return the extent of the evaluation at this step; None if there is none.

        Args:
            step: Steps taken so far.
            stepped: True if the step that led here is known.
        """
        if not self._cadence.evaluation(step):
            return None
        long = self._cadence.long(step)
        if not self._cap.limited:
            return Extent(long)
        if self.evaluated is None:
            self._tell_price()
            return Extent(long, self._cap, at_least_lambda_max=True)
        if self._cadence.last(step):
            return Extent(long, self._cap)
        predicted = self._curvature.predicted(long=long, stepped=stepped)
        allowed = self._allowed(step)
        if predicted <= allowed:
            return Extent(long)
        return self._cut(step, long, min(allowed, _CUT_SHARE * self._cap.left))

    def made(self, step: int) -> None:
        """Note that an evaluation was made, and schedule the next one."""
        self.evaluated = step
        self._cadence.schedule_next(step)

    def at_the_end(self, step: int) -> Extent | None:
        """Return the extent of the evaluation with which a run ends; None if it has one already, or takes none."""
        if not self._cadence.takes_last or self.evaluated == step:
            return None
        return Extent(cap=self._cap)

    def _allowed(self, step: int) -> float:
        """Return the seconds that an evaluation may take so that a whole last one fits, or else one with lambda_max."""
        left, rest = self._cap.left, self._cadence.steps_to_last(step)
        if rest is None:
            return left
        other = self._overhead.total - self._overhead.seconds["curvature"]
        per_step = (self._overhead.wall - self._overhead.seconds["curvature"]) / max(step, 1)
        grows = max(self._cap.share - other / self._overhead.wall, 0.0) * per_step * rest
        for last in (self._curvature.predicted(long=True, stepped=True), self._curvature.least_lambda_max()):
            if left + grows >= last:
                return min(left, left + grows - last)
        return left

    def _cut(self, step: int, long: bool, seconds: float) -> Extent | None:
        """Return the extent of an evaluation that is cut to some seconds; None if the loss alone takes longer."""
        if self._curvature.least() <= seconds:
            return Extent(long, self._cap.narrowed(seconds))
        if self._cadence.fixed:
            self._faults.note("curvature", step, self._cap.reason("curvature"), topic="overhead")
        else:
            self._cadence.postpone(step)
        return None

    def _tell_price(self) -> None:
        """Print on stderr what an evaluation costs at most, and how often the cap allows one."""
        seconds = self._curvature.predicted(long=True, stepped=True)
        say(
            f"{self._name}: a curvature evaluation takes up to {seconds:.2g} s; recording may take "
            f"{100 * self._cap.share:g} % of the time, so about one every {seconds / self._cap.share:.2g} s, and "
            "between them only lambda_max and what else fits (change it with overhead=); it needs up to "
            f"{_size(self._curvature.memory)} of memory, {self._curvature.copies} copies of the parameters, beside the "
            "graphs of the loss (measures= takes fewer); from step to step the recorder keeps up to "
            f"{_size(self._kept)}: the norms of the last steps with a copy of the weights, and the matrices before the "
            "first step where spectra are recorded"
        )


def _size(count: int) -> str:
    """Return a number of bytes as text, with three digits."""
    power = min(max(int(math.log10(max(count, 1)) // 3), 1), 3)
    return f"{count / 1000**power:.3g} {'BkMG'[power]}B"
