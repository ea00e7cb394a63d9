"""Figures of a verdict along the training: sharpness over the loss, and the noise that weights bear at the level."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lossscope.landscape.verdicts.verdict import Verdict
from lossscope.reports.figure_content import Axis, Curve, Curves, Numbers, Threshold, drawn
from lossscope.reports.shared.number_format import plain
from lossscope.reports.shared.quantities import number

__all__ = ["RISE", "noise_figures", "sharpness_figures"]

RISE: Final = 0.1  # of the loss, at sigma*
_LEVELS: Final = 40  # losses at which sharpness is read
FloatArray: TypeAlias = npt.NDArray[np.float64]


def sharpness_figures(verdict: Verdict) -> tuple[Curves, ...]:
    """Return the adaptive trace over the training loss, which falls to the right, for each task.

    Each run is read at common losses as verdicts read it: at the first crossing, between the evaluations around it.
    Losses that a run of an arm did not reach are left out of its line.
    """
    tasks = verdict.figures.get("series", {})
    found = (_sharpness(verdict.level, arms, _place(task, tasks)) for task, arms in tasks.items())
    return tuple(one for one in found if one is not None)


def noise_figures(verdict: Verdict) -> tuple[Curves, ...]:
    """Return the rise of the loss over the noise that each weight bears, at the level, for each task."""
    tasks = verdict.figures.get("noise_curve", {})
    return tuple(_noise(arms, _place(task, tasks)) for task, arms in tasks.items() if arms)


def _place(task: str, tasks: Mapping[str, object]) -> tuple[str, str]:
    """Return the ends of the key and of the title of a task's figure; empty where there is one task."""
    return (f"_{list(tasks).index(task)}", f" on {task}") if len(tasks) > 1 else ("", "")


def _sharpness(
    level: float | None, arms: Mapping[str, Sequence[Mapping[str, Any]]], place: tuple[str, str]
) -> Curves | None:
    """Return the figure of one task; None if no run has numbers."""
    losses = np.array([loss for runs in arms.values() for run in runs for loss in run["loss"]], dtype=np.float64)
    losses = losses[np.isfinite(losses) & (losses > 0)]
    losses = losses[[drawn(loss) for loss in losses]] if len(losses) else losses
    if not len(losses):
        return None
    grid = np.geomspace(losses.max(), losses.min(), _LEVELS)
    curves = [_over_seeds(hue, arm, grid, [_read(run, grid) for run in arms[arm]]) for hue, arm in enumerate(arms)]
    there = tuple(curve for curve in curves if any(one is not None for one in curve.median))
    return Curves(
        key=f"sharpness{place[0]}",
        title=f"Sharpness along training{place[1]}",
        caption="Adaptive trace over the training loss, which falls to the right. Lines are geometric means over "
        "seeds, bands the range over seeds, as far as all seeds of the arm came.",
        x=Axis("training loss", scale="log", falling=True),
        y=Axis("adaptive trace", scale="log"),
        curves=there,
        absent=tuple(curve.name for curve in curves if curve not in there),
        marks=() if level is None else (Threshold(level, f"level {level:g}"),),
        summary=tuple(_end(curve, "at training loss") for curve in there),
    )


def _noise(arms: Mapping[str, Mapping[str, Any]], place: tuple[str, str]) -> Curves:
    """Return the figure of one task."""
    curves = tuple(_noise_curve(hue, arm, found) for hue, (arm, found) in enumerate(arms.items()))
    return Curves(
        key=f"noise{place[0]}",
        title=f"Noise that each weight can bear{place[1]}",
        caption="Mean rise of the loss where each weight is off by a random share of itself, of size sigma; at the "
        "level. Lines are geometric means over seeds, bands the range over seeds. A line crosses "
        f"{RISE:g} at its sigma*.",
        x=Axis("sigma", scale="log"),
        y=Axis("rise of the loss", scale="log"),
        curves=curves,
        thresholds=(Threshold(RISE, f"rise of {RISE:g}"),),
        summary=tuple(_end(curve, "at sigma") for curve in curves),
    )


def _noise_curve(hue: int, arm: str, found: Mapping[str, Any]) -> Curve:
    """Return the noise curve of an arm."""
    x, y, low, high = (_numbers(found[key]) for key in ("x", "y", "low", "high"))
    return Curve(arm, hue, x, y, low, high, (None,) * len(x), int(found["n"]))


def _read(run: Mapping[str, Any], grid: FloatArray) -> FloatArray:
    """Return the logarithm of a run's values at the first crossing of each loss; nan where there is none."""
    with np.errstate(all="ignore"):
        x, y = (np.log(np.array(run[key], dtype=np.float64)) for key in ("loss", "value"))
    out = np.full(len(grid), math.nan)
    for place, level in enumerate(np.log(grid)):
        below = np.flatnonzero(x <= level)
        if len(below) and (k := int(below[0])) and math.isfinite(x[k]):
            out[place] = y[k - 1] + (x[k - 1] - level) / (x[k - 1] - x[k]) * (y[k] - y[k - 1])
    return out


def _over_seeds(hue: int, arm: str, x: FloatArray, logs: Sequence[FloatArray]) -> Curve:
    """Return geometric mean and range over the seeds of an arm; missing where a seed has none."""
    stacked = np.array(logs).reshape(len(logs), len(x))
    stacked = np.where(np.isfinite(stacked).all(axis=0), stacked, math.nan)
    summaries: list[Callable[..., Any]] = [np.mean, np.min, np.max]
    empty = np.full(len(x), math.nan)
    middle, low, high = (np.exp(one(stacked, axis=0)) if len(logs) else empty for one in summaries)
    return Curve(arm, hue, _numbers(x), _numbers(middle), _numbers(low), _numbers(high), (None,) * len(x), len(logs))


def _numbers(values: Sequence[float] | FloatArray) -> Numbers:
    """Return numbers as floats, None where they are not finite."""
    return tuple(number(one) for one in values)


def _end(curve: Curve, where: str) -> str:
    """Return the last point of a curve as text."""
    last = max((place for place, one in enumerate(curve.median) if one is not None), default=None)
    if last is None:
        return f"{curve.name}: not measured"
    return f"{curve.name}: {plain(curve.median[last], 2)} {where} {plain(curve.x[last], 2)}"
