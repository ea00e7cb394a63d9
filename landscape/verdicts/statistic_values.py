"""Values of the statistics of bounds: one number a seed or a pair, or times that a run may not reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lossscope.landscape.analysis.minibatch_windows import lagged_cosines_of
from lossscope.landscape.analysis.series import first_step
from lossscope.landscape.verdicts.figures import test_loss_at
from lossscope.landscape.verdicts.level import Crossing, FloatArray, LossName, crossing, evaluations_of
from lossscope.landscape.verdicts.pairs import Matchup
from lossscope.landscape.verdicts.statistic_names import Statistic
from lossscope.landscape.verdicts.verdict import Reason

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["Times", "paired_values", "seed_values", "times"]

Numbers = tuple[list[float], list[list[Reason]]]  # one number each, and why others are missing


@dataclass(frozen=True)
class Times:
    """Steps of two runs until they reach something."""

    a: float  # steps; infinity if it was not reached
    b: float
    a_end: float  # last step of the run
    b_end: float
    text: str = ""  # which run never reached it; empty if both did

    @property
    def log_ratio(self) -> float:
        """Log of b over a; nan if one of them is unknown."""
        known = math.isfinite(self.a) and math.isfinite(self.b) and self.a > 0 and self.b > 0
        return math.log(self.b / self.a) if known else math.nan

    def compared(self, limit: float, *, least: bool) -> Literal["win", "loss", "open"]:
        """Compare the ratio b over a with a limit, from what is known of it.

        Args:
            limit: The number claimed.
            least: True if the ratio is to be at least that, False if at most.
        """
        low, high = self._range()
        certainly_above, certainly_below = low >= limit, high < limit
        if not least:
            certainly_above, certainly_below = high <= limit, low > limit
        return "win" if certainly_above else "loss" if certainly_below else "open"

    def _range(self) -> tuple[float, float]:
        """Return the least and the largest ratio that what was seen allows. A run that was there at step 0 is open."""
        if self.a <= 0 or self.b <= 0:
            return 0.0, math.inf
        a_low, a_high = (self.a, self.a) if math.isfinite(self.a) else (self.a_end, math.inf)
        b_low, b_high = (self.b, self.b) if math.isfinite(self.b) else (self.b_end, math.inf)
        low = b_low / a_high if math.isfinite(a_high) else 0.0
        return low, b_high / a_low if a_low > 0 else math.inf


def times(matchup: Matchup, statistic: Statistic, level: float | None, loss: LossName) -> list[Times]:
    """Return the steps until both runs of each pair reach a level, or a column a value."""
    found = []
    for pair in matchup.pairs:
        a, b = (_time(run, statistic, level, loss) for run in (pair.a, pair.b))
        never = " and ".join(run.name for run, at in ((pair.a, a), (pair.b, b)) if not math.isfinite(at))
        found.append(Times(a, b, _end(pair.a), _end(pair.b), f"{never} never reached it" if never else ""))
    return found


def paired_values(matchup: Matchup, statistic: Statistic, level: float | None, loss: LossName) -> Numbers:
    """Return one number a pair: the difference of two test losses, or the log-ratio of two step times."""
    numbers, missing = [], []
    for pair in matchup.pairs:
        if statistic.name == "test_loss":
            a, b = (test_loss_at(run, level or 0.0, loss) for run in (pair.a, pair.b))
            numbers.append(a - b)
        else:
            a, b = _seconds(pair.a), _seconds(pair.b)
            numbers.append(math.log(a / b) if a > 0 and b > 0 else math.nan)
        bare = [run for run, one in ((pair.a, a), (pair.b, b)) if not math.isfinite(one)]
        missing.append([_missing(run, statistic, level, loss) for run in bare])
    return numbers, missing


def seed_values(runs: Sequence[Run], statistic: Statistic) -> Numbers:
    """Return one number a seed: log overfit, share of ascents, or a jackknife value of the direction memory."""
    if statistic.name == "memory_difference":
        numbers = jackknifed_memory([_cosines(run, statistic.lag) for run in runs])
    elif statistic.name == "overfit":
        numbers = [_overfit(run) for run in runs]
    else:
        numbers = [_ascent_share(run) for run in runs]
    missing = [
        [] if math.isfinite(number) else [Reason("NOT_MEASURED", f"{statistic.name} is unknown", (run.name,))]
        for number, run in zip(numbers, runs, strict=True)
    ]
    return numbers, missing


def jackknifed_memory(sums: Sequence[FloatArray | None]) -> list[float]:
    """Return one jackknife value a seed of D(k) = A_v(k) - A_g(k), each A the ratio of means over all seeds.

    The mean of the values is D(k) without its bias of first order, and their t interval is the jackknife interval: no
    seed needs an interval of its own.

    Args:
        sums: Of each seed, cosines of the shear at the lag and at lag 0, and of the gradient likewise, summed over
            windows; None where a seed has none.
    """
    known = [one for one in sums if one is not None]
    if len(known) < 2:
        return [math.nan] * len(sums)
    total = np.sum(known, axis=0)
    whole, n = _difference(total), len(known)
    return [math.nan if one is None else n * whole - (n - 1) * _difference(total - one) for one in sums]


def _difference(sums: FloatArray) -> float:
    """Return the difference of two ratios; nan unless both ceilings are above 0."""
    shear, shear_ceiling, gradient, gradient_ceiling = sums
    if not (shear_ceiling > 0 and gradient_ceiling > 0):
        return math.nan
    return float(shear / shear_ceiling - gradient / gradient_ceiling)


def _cosines(run: Run, lag: int) -> FloatArray | None:
    """Return the summed cosines of a run for `jackknifed_memory`; None if the lag was not sampled for both objects."""
    found = lagged_cosines_of(run)
    sums: list[float] = []
    for kind in ("shear", "gradient"):
        one = found.get(kind)
        if one is None or lag not in one.lags:
            return None
        row, ceiling = one.values[1 + one.lags.index(lag)], one.values[0]
        known = np.isfinite(row) & np.isfinite(ceiling)
        if not known.any():
            return None
        sums += [float(row[known].sum()), float(ceiling[known].sum())]
    return np.array(sums)


def _time(run: Run, statistic: Statistic, level: float | None, loss: LossName) -> float:
    """Return the step at which a run reaches a level or a value; infinity if it does not."""
    if statistic.name == "first_step":
        found = first_step(run, statistic.column, statistic.level)
        return math.inf if found is None else float(found)
    at = crossing(run, level or 0.0, loss)
    return at.step if isinstance(at, Crossing) else math.inf


def _end(run: Run) -> float:
    """Return the last step of a run."""
    return float(run.steps["step"].iloc[-1]) if len(run.steps) else 0.0


def _seconds(run: Run) -> float:
    """Return the median time of a step, which leaves out evaluations; nan if it was not recorded."""
    rows = run.steps[["step", "seconds"]].dropna().to_numpy(dtype=np.float64)
    apart = np.diff(rows, axis=0)
    apart = apart[apart[:, 0] == 1] if len(apart) else apart
    return float(np.median(apart[:, 1])) if len(apart) else math.nan


def _overfit(run: Run) -> float:
    """Return the log of the final over the least test loss: of the steps, else of the evaluations; nan if unknown."""
    rows = run.steps["test_loss"].dropna().to_numpy(dtype=np.float64)
    if not len(rows):
        rows = evaluations_of(run).values.get("test_loss", np.array([]))
        rows = rows[np.isfinite(rows)]
    return math.log(rows[-1] / rows.min()) if len(rows) and rows.min() > 0 else math.nan


def _ascent_share(run: Run) -> float:
    """Return the share of steps that took a second gradient; nan if it was not recorded."""
    taken = run.steps["synced"].dropna().to_numpy(dtype=np.float64)
    return float(taken.mean()) if len(taken) else math.nan


def _missing(run: Run, statistic: Statistic, level: float | None, loss: LossName) -> Reason:
    """Return the reason that a run has no value."""
    if statistic.name == "test_loss" and level is not None:
        at = crossing(run, level, loss)
        if isinstance(at, Reason):
            return at
    return Reason("NOT_MEASURED", f"{statistic.name} is unknown", (run.name,))
