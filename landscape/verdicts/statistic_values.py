"""Values of the statistics of bounds: one number a seed or a pair, or times that a run may not reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from lossscope.landscape.analysis.minibatch_windows import lagged_cosines_of
from lossscope.landscape.analysis.series import first_step
from lossscope.landscape.verdicts.figures import test_loss_at
from lossscope.landscape.verdicts.level import Crossing, FloatArray, LossName, crossing, evaluations_of
from lossscope.landscape.verdicts.pairs import Matchup, date_of
from lossscope.landscape.verdicts.statistic_names import Statistic
from lossscope.landscape.verdicts.verdict import Reason

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["Times", "paired_values", "seed_values", "times"]

_TIMED_TOGETHER: Final = 0.25  # hours between the starts of two runs whose times are compared
Numbers = tuple[list[float], list[list[Reason]]]  # one number each, and why others are missing


@dataclass(frozen=True)
class Times:
    """Steps of two runs until they reach something."""

    a: float  # steps; infinity if it was not reached, nan if that is not known
    b: float
    a_end: float  # last step at which it was looked for
    b_end: float
    text: str = ""  # which run never reached it, or was not looked at; empty if both did

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
        if not (self.a > 0 and self.b > 0):
            return 0.0, math.inf
        a_low, a_high = (self.a, self.a) if math.isfinite(self.a) else (self.a_end, math.inf)
        b_low, b_high = (self.b, self.b) if math.isfinite(self.b) else (self.b_end, math.inf)
        low = b_low / a_high if math.isfinite(a_high) else 0.0
        return low, b_high / a_low if a_low > 0 else math.inf


def times(matchup: Matchup, statistic: Statistic, level: float | None, loss: LossName) -> list[Times]:
    """Return the steps until both runs of each pair reach a level, or a column a value."""
    found = []
    for pair in matchup.pairs:
        (a, a_end), (b, b_end) = (_time(run, statistic, level, loss) for run in (pair.a, pair.b))
        never = " and ".join(run.name for run, at in ((pair.a, a), (pair.b, b)) if at == math.inf)
        unknown = " and ".join(run.name for run, at in ((pair.a, a), (pair.b, b)) if math.isnan(at))
        said = [f"{never} never reached it"] if never else []
        said += [f"when {unknown} reached it was not recorded"] if unknown else []
        found.append(Times(a, b, a_end, b_end, ", and ".join(said)))
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
        if statistic.name == "seconds_ratio" and (apart := _hours_apart(pair.a, pair.b)) > _TIMED_TOGETHER:
            numbers[-1] = math.nan
            text = f"trained {apart:.1f} hours from its partner, when the machine may have been busier"
            missing[-1].append(Reason("NOT_MEASURED", text, (pair.a.name,)))
    return numbers, missing


def _hours_apart(a: Run, b: Run) -> float:
    """Return the hours between the starts of two runs; 0 if one is unknown."""
    dates = [date_of(run.manifest.get("created")) for run in (a, b)]
    known = [one for one in dates if one is not None]
    return abs((known[0] - known[-1]).total_seconds()) / 3600 if len(known) == 2 else 0.0


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


def _time(run: Run, statistic: Statistic, level: float | None, loss: LossName) -> tuple[float, float]:
    """Return the step at which a run reaches a level or a value, and the last step at which it was looked at.

    The first is infinity if the run did not reach it, and nan if that is not known: nothing was recorded, or the first
    that was is there already.
    """
    if statistic.name == "first_step":
        seen = run.steps.loc[run.steps[statistic.column].notna(), "step"]
        found = first_step(run, statistic.column, statistic.level)
        end = float(seen.iloc[-1]) if len(seen) else math.nan
        return (math.inf if len(seen) else math.nan) if found is None else float(found), end
    at, evaluations = crossing(run, level or 0.0, loss), evaluations_of(run)
    losses = evaluations.losses(loss)
    known = evaluations.steps[np.isfinite(losses)]
    if isinstance(at, Crossing):
        return at.step, float(known[-1])
    never = len(known) and not (losses <= (level or 0.0)).any()
    return math.inf if never else math.nan, float(known[-1]) if len(known) else math.nan


def _seconds(run: Run) -> float:
    """Return the mean time of a step, nan if it was not recorded.

    It is the mean of the medians of steps with and without an ascent, weighted by their numbers: a median leaves out
    evaluations, and one of all steps would leave out the ascents, too, where they are few.
    """
    rows = run.steps[["step", "seconds", "synced"]].dropna(subset=["step", "seconds"])
    steps, seconds = (rows[name].to_numpy(dtype=np.float64) for name in ("step", "seconds"))
    ascends = rows["synced"].fillna(value=False).to_numpy(dtype=bool)[1:]
    apart, next_to = np.diff(seconds), np.diff(steps) == 1
    kinds = [apart[next_to & (ascends == kind)] for kind in (False, True)]
    parts = [float(np.median(one)) * len(one) for one in kinds if len(one)]
    return sum(parts) / sum(map(len, kinds)) if parts else math.nan


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
