"""Schedule of curvature evaluations under the cap on the overhead: which take place, and what is cut from them."""

from __future__ import annotations

from dataclasses import dataclass

from lossscope.landscape.recording.cadence import Cadence
from lossscope.landscape.recording.cost_cap import CostCap
from lossscope.landscape.recording.curvature_evaluations import CurvatureEvaluations
from lossscope.landscape.recording.faults import Faults, say
from lossscope.landscape.recording.overhead import Overhead

__all__ = ["EvaluationSchedule", "Extent"]


@dataclass(frozen=True)
class Extent:
    """Extent of one curvature evaluation."""

    long: bool = True  # the whole panel is due
    cap: CostCap | None = None  # what does not fit under it is left out
    at_least_lambda_max: bool = False  # lambda_max is measured with a few products where it does not fit


class EvaluationSchedule:
    """Curvature evaluations that are due and fit under the cap.

    The first evaluation and the last one of a fixed schedule are cut to what fits; any other one takes place as a whole
    or not at all. One that does not fit is missing if its step is fixed, and otherwise postponed until it does.

    Args:
        curvature: The evaluations, whose cost is predicted.
        cadence: Steps at which they are due.
        cap: Cap on the overhead.
        overhead: Clock of the recording.
        faults: Collects what is missing.
        name: Name of the run, for the line that tells the price.

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
    ) -> None:
        self.evaluated: int | None = None
        self._curvature, self._cadence, self._cap = curvature, cadence, cap
        self._overhead, self._faults, self._name = overhead, faults, name

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
        first = self.evaluated is None
        predicted = self._curvature.predicted(long=long, stepped=stepped)
        if first:
            self._tell_price()
        elif predicted > self._cap.left and not self._cadence.last(step):
            self._skip(step, predicted)
            return None
        return Extent(long, self._cap if first or self._cadence.last(step) else None, at_least_lambda_max=first)

    def made(self, step: int, extent: Extent) -> None:
        """Note that an evaluation was made, and schedule the next one."""
        self.evaluated = step
        following = self._curvature.predicted(long=extent.long, stepped=True) if self._cap.limited else 0.0
        self._cadence.schedule_next(step, self._training_steps(step, following))

    def at_the_end(self, step: int) -> Extent | None:
        """Return the extent of the evaluation with which a run ends; None if it has one already, or takes none."""
        if not self._cadence.takes_last or self.evaluated == step:
            return None
        return Extent(cap=self._cap)

    def _skip(self, step: int, predicted: float) -> None:
        """Note that an evaluation at a fixed step is missing, or postpone one of a growing schedule."""
        if self._cadence.fixed:
            self._faults.note("curvature", step, self._cap.reason(), topic="overhead")
        else:
            self._cadence.postpone(step, self._training_steps(step, predicted))

    def _training_steps(self, step: int, seconds: float) -> float:
        """Return the number of training steps after which `seconds` of recording fit under the cap."""
        return self._cap.wait(seconds) * max(step, 1) / max(self._overhead.training, 1e-9)

    def _tell_price(self) -> None:
        """Print on stderr what an evaluation costs at most, and how often the cap allows one."""
        seconds = self._curvature.predicted(long=True, stepped=True)
        say(
            f"{self._name}: a curvature evaluation takes up to {seconds:.2g} s; recording may take "
            f"{100 * self._cap.share:g} % of the time, so about one every {seconds / self._cap.share:.2g} s "
            "(change it with overhead=)"
        )
