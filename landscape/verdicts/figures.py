"""Further numbers of a verdict, for pages: curves along training, radii, noise curves, test losses and costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.verdicts.level import (
    Crossing,
    FloatArray,
    LossName,
    Value,
    crossing,
    evaluations_of,
    plain_value,
    spent,
    value,
)
from lossscope.landscape.verdicts.pairs import Matchup
from lossscope.landscape.verdicts.rule import interval
from lossscope.landscape.verdicts.verdict import PANEL

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["costs", "figures_of", "test_loss_at", "test_losses"]

SERIES: Final = "adaptive_trace"  # the measure drawn along training
RADIUS: Final = "sigma_star"
_CURVE: Final = "noise_rise"
Runs = dict[str, dict[str, list[tuple[str, "Run"]]]]  # name of the seeds and run, by task and arm


def figures_of(matchups: Sequence[Matchup], level: float, loss: LossName, confidence: float) -> dict[str, Any]:
    """Return further numbers at a level; `judge` names the keys."""
    runs = _by_arm(matchups)
    return {
        "loss": loss,
        "series": _each(runs, lambda members: _series(members, loss)),
        RADIUS: _each(runs, lambda members: _radius(members, level, loss)),
        "noise_curve": _each(runs, lambda members: _noise_curve(members, level, loss)),
        "test_loss": test_losses(matchups, level, loss, confidence),
        "cost": costs(matchups, level, loss),
        "unpaired": sorted({name for one in matchups for name in one.unpaired}),
        "unconverged": _unconverged(runs, level, loss),
    }


def costs(matchups: Sequence[Matchup], level: float, loss: LossName) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean gradients, ascents and steps up to the level, by task and arm, over the runs that reach it."""
    return _each(_by_arm(matchups), lambda members: _cost(members, level, loss))


def test_losses(matchups: Sequence[Matchup], level: float, loss: LossName, confidence: float) -> list[dict[str, Any]]:
    """Return the test loss of both arms at the level, and their difference with its interval, for each matchup.

    Interval and difference are nan where a pair has no test loss: nothing is left out.
    """
    found = []
    for one in matchups:
        sides = [
            [test_loss_at(run, level, loss) for run in runs]
            for runs in zip(*((p.a, p.b) for p in one.pairs), strict=True)
        ]
        if not sides or not np.isfinite(sides).any():
            continue
        a, b = (np.array(side) for side in sides)
        mean, low, high = (float(number) for number in interval(a - b, confidence))
        numbers = {"a_value": float(a.mean()), "b_value": float(b.mean()), "difference": mean, "low": low, "high": high}
        n = int(np.isfinite(a - b).sum())
        found.append({"task": one.task, "a": one.a, "b": one.b, "n": n, **numbers, "differences": (a - b).tolist()})
    return found


def test_loss_at(run: Run, level: float, loss: LossName) -> float:
    """Return the test loss of a run at a level: that of its evaluations, else of its steps; nan if it has none."""
    at = crossing(run, level, loss)
    if not isinstance(at, Crossing):
        return math.nan
    found = plain_value(run, at, "test_loss")
    if math.isfinite(found):
        return found
    rows = run.steps[["step", "test_loss"]].dropna()
    if not len(rows) or not rows["step"].iloc[0] <= at.step <= rows["step"].iloc[-1]:
        return math.nan
    return float(np.interp(at.step, rows["step"].to_numpy(np.float64), rows["test_loss"].to_numpy(np.float64)))


def _by_arm(matchups: Iterable[Matchup]) -> Runs:
    """Return the paired runs by task and arm, each once."""
    found: Runs = {}
    for one in matchups:
        for pair in one.pairs:
            for arm, run in ((one.a, pair.a), (one.b, pair.b)):
                members = found.setdefault(one.task, {}).setdefault(arm, [])
                if all(run is not other for _, other in members):
                    members.append((pair.name, run))
    return found


def _each(runs: Runs, of: Any) -> dict[str, dict[str, Any]]:
    """Return a number or table of each arm by task and arm, without those that have none."""
    found = {task: {arm: of(members) for arm, members in arms.items()} for task, arms in runs.items()}
    return {task: {arm: one for arm, one in arms.items() if one} for task, arms in found.items()}


def _series(members: Sequence[tuple[str, Run]], loss: LossName) -> list[dict[str, Any]]:
    """Return training loss and adaptive trace of each run of an arm, in the order of steps."""
    found = []
    for seeds, run in members:
        evaluations = evaluations_of(run)
        numbers = evaluations.values.get(SERIES)
        if numbers is None:
            continue
        losses = evaluations.losses(loss)
        known = np.isfinite(losses) & np.isfinite(numbers)
        columns = {"step": evaluations.steps, "loss": losses, "value": numbers}
        arrays = {name: column[known].tolist() for name, column in columns.items()}
        found.append({"run": run.name, "seeds": seeds, "measure": SERIES, **arrays})
    return found


def _radius(members: Sequence[tuple[str, Run]], level: float, loss: LossName) -> dict[str, Any]:
    """Return the geometric mean of sigma* over the runs of an arm at the level, and its range."""
    logs = [one.log for _, run in members if (one := _value(run, level, loss, RADIUS)) is not None]
    if not logs:
        return {}
    mean, low, high = (math.exp(log) for log in (float(np.mean(logs)), min(logs), max(logs)))
    return {"value": mean, "low": low, "high": high, "n": len(logs), "of": len(members)}


def _value(run: Run, level: float, loss: LossName, measure: str) -> Value | None:
    """Return a measure of a run at a level; None if it has none."""
    at = crossing(run, level, loss)
    found = value(run, at, measure) if isinstance(at, Crossing) else None
    return found if isinstance(found, Value) else None


def _noise_curve(members: Sequence[tuple[str, Run]], level: float, loss: LossName) -> dict[str, Any]:
    """Return the noise curve of an arm at the level: geometric mean over seeds, and range.

    Only runs with the grid of the first count. A rise that is not above 0 is nan.
    """
    curves = [one for _, run in members if (one := _curve(run, level, loss)) is not None]
    if not curves:
        return {}
    x = curves[0][0]
    logs = np.stack([y for grid, y in curves if len(grid) == len(x) and np.allclose(grid, x)])
    ends = {"y": logs.mean(0), "low": logs.min(0), "high": logs.max(0)}
    return {"x": x.tolist(), "n": len(logs), **{name: np.exp(one).tolist() for name, one in ends.items()}}


def _curve(run: Run, level: float, loss: LossName) -> tuple[FloatArray, FloatArray] | None:
    """Return the grid and the log rises of a run at a level, interpolated between the evaluations around it."""
    at = crossing(run, level, loss)
    table = getattr(run, "curves", None)
    if not isinstance(at, Crossing) or table is None or not len(table):
        return None
    steps = evaluations_of(run).steps
    rows = table[table["measure"] == _CURVE].drop_duplicates("step", keep="last").set_index("step")
    both = [rows.loc[step] for step in (int(steps[at.before]), int(steps[at.after])) if step in rows.index]
    if not both:
        return None
    grids = [np.asarray(row["x"], dtype=np.float64) for row in both]
    rises = [np.asarray(row["y"], dtype=np.float64) for row in both]
    logs = [np.log(np.where(rise > 0, rise, math.nan)) for rise in rises]
    if len(both) == 2 and len(grids[0]) == len(grids[1]) and np.allclose(grids[0], grids[1]):
        return grids[0], (1 - at.weight) * logs[0] + at.weight * logs[1]
    return grids[-1], logs[-1]


def _cost(members: Sequence[tuple[str, Run]], level: float, loss: LossName) -> dict[str, float]:
    """Return the mean gradients, ascents and steps of an arm up to the level."""
    found = [
        (at.step, *spent(run, at.step)) for _, run in members if isinstance(at := crossing(run, level, loss), Crossing)
    ]
    if not found:
        return {}
    steps, gradients, ascents = (float(number) for number in np.mean(found, axis=0))
    return {"gradients": gradients, "ascents": ascents, "steps": steps, "n": len(found), "of": len(members)}


def _unconverged(runs: Runs, level: float, loss: LossName) -> dict[str, int]:
    """Return the number of values that missed the asked accuracy, by measure; those without any are left out."""
    members = [run for arms in runs.values() for one in arms.values() for _, run in one]
    counts: Mapping[str, int] = {
        panel.measure: sum(
            (v := _value(run, level, loss, panel.measure)) is not None and v.unconverged for run in members
        )
        for panel in PANEL
    }
    return {measure: count for measure, count in counts.items() if count}
