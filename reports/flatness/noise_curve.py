"""Figure of noise curves: the mean rise of the loss where every weight is off by a random share of itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.series import FloatArray
from lossscope.reports.content import Quantity
from lossscope.reports.figure_content import Axis, Curve, Curves, Numbers, Threshold
from lossscope.reports.shared.loss_unit import loss_unit
from lossscope.reports.shared.number_format import plain, quantity_text
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["noise_curve_figure"]

_MEASURE: Final = "noise_rise"
_RISE: Final = 0.1  # of the loss, at which sigma_star ends the basin
_LEVELS: Final = 5  # noise levels in the numbers of the figure
_CAPTION: Final = (
    "Mean rise of the loss where each weight is off by a random share of itself, of size σ, at the last step with a "
    "curve. A line crosses the threshold at its σ*. Whiskers are 95 % intervals over the draws of noise; of several "
    "seeds the line is the median, and whiskers are the range over seeds."
)


def noise_curve_figure(runs: Sequence[Run]) -> tuple[Curves, ...]:
    """Return the last noise curve of each arm; empty if no run has one."""
    arms = [(hue, arm, _last_curves(members)) for hue, (arm, members) in enumerate(by_arm(runs).items())]
    curves = tuple(_curve(hue, arm, found) for hue, arm, found in arms if found)
    if not curves:
        return ()
    figure = Curves(
        key="noise_curve",
        title="Noise that the weights can bear",
        caption=_CAPTION,
        x=Axis("σ", scale="log"),
        y=Axis("rise of the loss", loss_unit(runs), _scale(curves)),
        curves=curves,
        thresholds=(Threshold(_RISE, f"rise of {_RISE:g}"),),
        absent=tuple(arm for _, arm, found in arms if not found),
        summary=tuple(_in_words(curve) for curve in curves),
    )
    return (figure,)


def _last_curves(runs: Sequence[Run]) -> list[tuple[FloatArray, ...]]:
    """Return x, y, low and high of the last curve of each run; of runs with other noise levels than the first, none."""
    found: list[tuple[FloatArray, ...]] = []
    for run in runs:
        rows = run.curves[run.curves["measure"] == _MEASURE]
        if len(rows):
            ends = (rows.iloc[-1][name] for name in ("x", "y", "low", "high"))
            found.append(tuple(np.array([] if one is None else one, dtype=np.float64) for one in ends))
    return [one for one in found if np.array_equal(one[0], found[0][0])]


def _curve(hue: int, arm: str, found: Sequence[tuple[FloatArray, ...]]) -> Curve:
    """Return the curve of an arm: of one run with its intervals, of several their median and range."""
    x, y, low, high = found[0]
    if len(found) > 1:
        every = np.stack([one[1] for one in found])
        y, low, high = np.median(every, axis=0), every.min(axis=0), every.max(axis=0)
    low, high = (one if len(one) == len(x) else np.full(len(x), np.nan) for one in (low, high))
    missing: Numbers = (None,) * len(x)
    ends = _numbers(low), _numbers(high)
    return Curve(arm, hue, _numbers(x), _numbers(y), *ends, missing, len(found), interval=True)


def _scale(curves: Iterable[Curve]) -> Literal["log", "symlog"]:
    """Return "log" if every rise and interval is positive, else "symlog": noise can lower the loss."""
    ends = [one for curve in curves for one in (*curve.median, *curve.low) if one is not None]
    return "log" if all(one > 0 for one in ends) else "symlog"


def _in_words(curve: Curve) -> str:
    """Return rises at a few noise levels with their intervals, as text."""
    places = [place for place, value in enumerate(curve.median) if value is not None]
    chosen = dict.fromkeys(np.linspace(0, len(places) - 1, min(len(places), _LEVELS)).round().astype(int).tolist())
    parts = (
        f"{quantity_text(Quantity(curve.median[k], low=curve.low[k], high=curve.high[k]))} at σ {plain(level, 2)}"
        for k in (places[one] for one in chosen)
        if (level := curve.x[k]) is not None
    )
    return f"{curve.name}: " + (", ".join(parts) or "not measured")


def _numbers(values: FloatArray) -> Numbers:
    """Return an array as floats, nan as None."""
    return tuple(number(value) for value in values)
