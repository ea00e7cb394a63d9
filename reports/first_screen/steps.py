"""Effect of the optimizer's parts in a sentence: orthogonalization, ascent and shear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.diagnosis.parts import ASCENT, SHEAR
from lossscope.landscape.analysis.diagnosis.rules import alarmed
from lossscope.landscape.analysis.series import FloatArray, spectrum_series
from lossscope.reports.content import Quantity, Statement
from lossscope.reports.first_screen.arms import joined_arms, measured, of_arm, phrase, spread
from lossscope.reports.shared.loss_unit import loss_unit

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["steps"]

_LATE: Final = 0.75  # share of the steps after which they count as late


def steps(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the statements on what the optimizer did in its steps; none for parts that no run has."""
    return (*_orthogonalization(runs), *_ascent(runs), *_shear(runs))


def _orthogonalization(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the spectral entropy of the matrices before and after Newton-Schulz."""
    before, after = (of_arm(runs, partial(_entropy, kind=kind)) for kind in ("whitened", "orthogonal"))
    phrases = {
        arm: f"{measured(spread(before[arm]))} to {measured(spread(some))}"
        for arm, some in after.items()
        if arm in before
    }
    if not phrases:
        return ()
    middles = [(spread(before[arm]).value or 0.0, spread(after[arm]).value or 0.0) for arm in phrases]
    what = "raised" if all(first <= last for first, last in middles) else "changed"
    words = f"Orthogonalization {what} the spectral entropy of the update from {joined_arms(phrases)} (1: all equal)."
    return (Statement(words, "fine", "entropy"),)


def _entropy(run: Run, kind: str) -> Quantity | None:
    """Return the mean entropy over matrices at the last step that has it."""
    values = spectrum_series(run, kind, "entropy_energy").y
    finite = values[np.isfinite(values)]
    return Quantity(float(finite[-1])) if len(finite) else None


def _ascent(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the rise of the batch loss by the ascent, and the share of ascents that raised it."""
    found = of_arm(runs, _rise)
    if not found:
        return ()
    share = min(_ascending(run) for run in runs if _rise(run) is not None)
    fails = alarmed(runs, ASCENT)
    what = "raised" if all((one.value or 0.0) >= 0 for some in found.values() for one in some) else "changed"
    words = f"The ascent {what} the batch loss by {phrase(found, loss_unit(runs))} in the last quarter of the steps"
    tail = "; over the run it raises the loss less often than a coin would: it does not ascend" if fails else ""
    return (Statement(f"{words}, in {100 * share:.0f} % of them{tail}.", "look" if fails else "fine"),)


def _late(run: Run, column: str) -> FloatArray:
    """Return the finite values of a column in the last quarter of the steps."""
    rows = run.columns("steps", "step", column)
    if not len(rows):
        return np.empty(0)
    late = rows["step"] > _LATE * rows["step"].max()
    values: FloatArray = rows.loc[late, column].to_numpy(dtype=np.float64, na_value=np.nan)
    return values[np.isfinite(values)]


def _rise(run: Run) -> Quantity | None:
    """Return the mean surrogate gap of the late steps with its standard error."""
    gaps = _late(run, "surrogate_gap")
    if not len(gaps):
        return None
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None
    return Quantity(float(gaps.mean()), error=error)


def _ascending(run: Run) -> float:
    """Return the share of late ascents that raised the loss."""
    return float((_late(run, "surrogate_gap") > 0).mean())


def _shear(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the angle by which the ascent turns the gradient, and whether minibatches agree on the turn."""
    found, random = of_arm(runs, _angle), alarmed(runs, SHEAR)
    turn = f"The ascent turned the gradient by an angle of {phrase(found, '°')}: this turn is the shear" * bool(found)
    agree = "the shears of two minibatches agree no more than random directions do" if random else ""
    words = "; ".join(filter(None, (turn, agree)))
    if not words:
        return ()
    return (Statement(f"{words[:1].upper()}{words[1:]}.", "look" if random else "fine", "shear_angle"),)


def _angle(run: Run) -> Quantity | None:
    """Return the median angle of the late steps, with the standard error of a median."""
    angles = np.degrees(_late(run, "adversarial_angle"))
    if not len(angles):
        return None
    error = 1.2533 * float(angles.std(ddof=1)) / math.sqrt(len(angles)) if len(angles) > 1 else None
    return Quantity(float(np.median(angles)), error=error)
