"""Rest at the end of training: the gradient against the sampling noise of its data, and negative curvature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.divergence import divergence_of
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.evaluation_tables import MOST_RUNS
from lossscope.reports.shared.loss_unit import LOSS
from lossscope.reports.shared.quantities import last_number, number, row_quantity, summarized

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["NEGATIVE", "Rest", "rest_of", "rest_table"]

NEGATIVE: Final = 0.01  # share of negative curvature that counts as none
_NOTE: Final = (
    "The gradient is that of the loss itself: the squared norm of minibatch gradients over the second half of the "
    "steps, without their noise. Its sampling noise is √(tr Σ / n), with the covariance Σ of the gradient of one "
    "sample and the n samples of curvature: another draw of so many samples would move the gradient by as much. At "
    "rest: the upper end of the gradient's interval lies below its sampling noise, and that of the negative mass below "
    f"{100 * NEGATIVE:g} %."
)
_NORM: Final = (
    Column("gradient", "gradient norm [95 %]", LOSS, "of the loss itself, over the second half of the steps"),
    Column("noise", "its sampling noise", LOSS, "√(tr Σ / n) of the n samples of curvature"),
    Column("batch", "batch gradient norm", LOSS, "of the last step sampled: with the noise of its minibatch"),
    Column("mass", "negative mass [95 %]", "1", "share of negative curvature, at the last evaluation that has it"),
)
_REST: Final = Column("rest", "at rest", "", "yes, no, or not known from what was recorded", words=True)


@dataclass(frozen=True)
class Rest:
    """Gradient and negative curvature at the end of a run."""

    gradient: Quantity  # norm of the gradient without minibatch noise
    noise: float | None  # standard deviation of the norm by the drawing of the data
    batch: float | None  # norm of the last minibatch gradient
    mass: Quantity  # negative mass
    diverged: bool = False  # after the last evaluation or before

    @property
    def steep(self) -> bool | None:
        """True if the gradient exceeds its sampling noise, False if it is below, None if neither is known."""
        low, high = self.gradient.low, self.gradient.high
        if low is None or high is None or self.noise is None:
            return None
        return True if low > self.noise else False if high < self.noise else None

    @property
    def curved_down(self) -> bool | None:
        """True if there is negative curvature, False if there is none to speak of, None if neither is known."""
        low, high = self.mass.low, self.mass.high
        if low is None or high is None:
            return None
        return True if low > NEGATIVE else False if high < NEGATIVE else None

    @property
    def earned(self) -> bool | None:
        """True if the loss is at rest where training ended, False if it is not, None if this is not known."""
        if self.diverged or self.steep or self.curved_down:
            return False
        return True if self.steep is False and self.curved_down is False else None

    @property
    def word(self) -> str:
        """Outcome in a word."""
        return {True: "yes", False: "no", None: "not known"}[self.earned]


def rest_of(run: Run) -> Rest:
    """Return what a run recorded of its gradient and of negative curvature at its end."""
    gradient, noise = _gradient(run, _samples(run))
    diverged = divergence_of(run) is not None
    return Rest(gradient, noise, last_number(run, "gradient_norm"), _mass(run), diverged)


def rest_table(runs: Sequence[Run], rests: Mapping[str, Rest]) -> tuple[Table, ...]:
    """Return one row for each run, or for each arm of many runs; none if no run recorded anything of it.

    Args:
        runs: The runs.
        rests: Rest of each run by name.
    """
    if not any(one.noise or one.batch is not None or one.mass.value is not None for one in rests.values()):
        return ()
    title = "Gradient and negative curvature at the end"
    if len(runs) > MOST_RUNS:
        arms = tuple((arm, *_of_arm([rests[run.name] for run in some])) for arm, some in by_arm(runs).items())
        head = Column("arm", "arm", words=True)
        return (Table("rest", f"{title}: median [range over seeds]", (head, *_NORM, _REST), arms, _NOTE),)
    rows = tuple((run.name, *_cells(rests[run.name])) for some in by_arm(runs).values() for run in some)
    return (Table("rest", title, (Column("run", "run", words=True), *_NORM, _REST), rows, _NOTE),)


def _cells(rest: Rest) -> tuple[Cell, ...]:
    """Return the cells of a run."""
    return (rest.gradient, rest.noise, rest.batch, rest.mass, rest.word)


def _of_arm(rests: Sequence[Rest]) -> tuple[Cell, ...]:
    """Return the cells of an arm."""
    noise, batch = (summarized(map(Quantity, some)) for some in zip(*((o.noise, o.batch) for o in rests), strict=True))
    norms = summarized(one.gradient for one in rests), noise, batch, summarized(one.mass for one in rests)
    words = [one.word for one in rests]
    counted = ", ".join(f"{word} {words.count(word)}" for word in ("yes", "no", "not known") if word in words)
    return (*norms, counted)


def _gradient(run: Run, samples: int | None) -> tuple[Quantity, float | None]:
    """Return the norm of the gradient with its interval, and its sampling noise; missing without enough windows."""
    if not len(run.columns("pairs", "step")):
        return Quantity(None), None
    from lossscope.landscape.analysis.gradient_noise import noise_of  # it takes scipy

    found = noise_of(run)
    late = None if found is None else found.late
    if late is None or not math.isfinite(late.signal.value):
        return Quantity(None), None
    norm, low, high = (_root(one) for one in (late.signal.value, late.signal.low, late.signal.high))
    covariance = number(late.noise.value)
    noise = None if samples is None or covariance is None or covariance <= 0 else math.sqrt(covariance / samples)
    return Quantity(norm, low=low, high=high), noise


def _root(square: float) -> float | None:
    """Return the square root of an estimate of a square, which may be below 0 by chance; None if it is not finite."""
    return math.sqrt(max(square, 0.0)) if math.isfinite(square) else None


def _mass(run: Run) -> Quantity:
    """Return the negative mass at its last evaluation."""
    rows = run.estimates
    rows = rows[(rows["measure"] == "negative_mass") & rows["tensor"].isna()]
    return row_quantity(rows.iloc[-1].to_dict()) if len(rows) else Quantity(None)


def _samples(run: Run) -> int | None:
    """Return the number of samples of curvature; None if it was not recorded."""
    config = run.manifest.get("config")
    parts = (run.manifest, config if isinstance(config, Mapping) else {})
    found = (part.get("curvature_samples") for part in parts)
    return next((one for one in found if isinstance(one, int) and not isinstance(one, bool) and one > 0), None)
