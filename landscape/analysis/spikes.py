"""Spikes of the loss: the module whose norms left their own past first, before the loss did."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.analysis.series import FloatArray

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["Departure", "Spike", "spikes_of"]

_NORMS: Final = ("gradient_norm", "update_norm", "weight_norm", "largest_update")
_MADS: Final = 8.0
_LEAST: Final = 16  # earlier steps of which a usual size is known
_SMALLEST_MAD: Final = 0.01  # of the logarithm of a norm


@dataclass(frozen=True)
class Departure:
    """The first step at which a norm of a module left its own past."""

    module: str
    tensor: str
    norm: str  # column of the table spikes
    step: int
    mads: float  # how far above the median of its past, in MADs of its logarithm; infinite if it is not finite
    value: float
    usual: float  # median of its past; nan if there is too little


@dataclass(frozen=True)
class Spike:
    """A spike of the loss, and the modules in the order in which they left their past."""

    step: int
    cause: str  # "loss", "loss not finite" or "norms not finite"
    loss: float  # nan if it is not finite or was not given
    level: float  # nan if there is none
    modules: int  # number of all
    left: tuple[Departure, ...]  # of each module that left, the first one first
    first: Departure | None  # the module that left before the loss, if it is one
    why: str  # the reason of that


def spikes_of(run: Run) -> tuple[Spike, ...]:
    """Return the spikes that a run wrote, by step.

    A norm leaves its past where its logarithm is more than 8 MAD above the median of at least 16 earlier steps in the
    ring, and so is the median of all values from there to the step before the spike, or where it is not finite. The
    loss of a step is taken before its update, so a module can have caused its spike by leaving at an earlier step
    alone. If more than half of several modules leave at the same step, none is named, as a batch or a learning rate
    changed them all. A norm that is not finite decides, whatever left before it. Of several that are not finite at
    once, the last module is named if it is the gradient, as infinities travel backward through the network.
    """
    rows = run.spikes
    return tuple(_spike(int(step), rows[rows["step"] == step]) for step in sorted(set(rows["step"])))


def _spike(step: int, rows: pd.DataFrame) -> Spike:
    """Return the spike of a step."""
    order: list[str] = []
    found: dict[str, Departure] = {}
    for row in rows.to_dict("records"):
        module = _module(str(row["tensor"]))
        if module not in order:
            order.append(module)
        for one in _departures(module, row, step):
            if module not in found or _key(one) < _key(found[module]):
                found[module] = one
    left = sorted((found[module] for module in order if module in found), key=_key)
    first, why = _first(step, left, order)
    head = rows.iloc[0]
    return Spike(
        step, str(head["cause"]), float(head["loss"]), float(head["level"]), len(order), tuple(left), first, why
    )


def _first(step: int, left: Sequence[Departure], order: Sequence[str]) -> tuple[Departure | None, str]:
    """Return the module that left before the loss, and the reason if it is none."""
    early = [one for one in left if one.step < step]
    if not early:
        return (
            None,
            "no layer had left the range of its earlier steps before the loss: look at the batch and the forward pass",
        )
    lost = [one for one in early if math.isinf(one.mads)]
    if lost:
        together = [one for one in lost if one.step == lost[0].step]
        backward = all(one.norm == "gradient_norm" for one in together)
        return sorted(together, key=lambda one: order.index(one.module))[-1 if backward else 0], ""
    together = [one for one in early if one.step == early[0].step]
    if len(together) > 1 and len(together) > len(order) / 2:
        return None, f"{len(together)} of {len(order)} modules left their past at step {early[0].step} at once"
    return early[0], ""


def _departures(module: str, row: Mapping[Hashable, Any], spike: int) -> list[Departure]:
    """Return the first departure of each norm of a parameter."""
    steps = _listed(row["at"])
    found = []
    for norm in _NORMS:
        values = _listed(row[norm])
        if len(values) != len(steps) or not np.isfinite(steps).all():
            continue  # a missing list, or one that was written by hand
        place, mads, usual = _left(values, int(np.searchsorted(steps, spike)))
        if place is not None:
            found.append(
                Departure(module, str(row["tensor"]), norm, int(steps[place]), mads, float(values[place]), usual)
            )
    return found


def _listed(cell: object) -> FloatArray:
    """Return a list of the table as an array; empty where it is missing."""
    return np.atleast_1d(np.asarray([] if cell is None else cell, dtype=np.float64))


def _left(values: FloatArray, spike: int) -> tuple[int | None, float, float]:
    """Return the place at which a series leaves its past, by how many MADs, and its median before.

    Args:
        values: The series.
        spike: Place of the spike.
    """
    lost = np.flatnonzero(np.isinf(values))
    end = int(lost[0]) if len(lost) else len(values)
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(values[:end], 1e-300))
    for place in range(_LEAST, end):
        before = logs[:place][np.isfinite(logs[:place])]
        if len(before) < _LEAST or not math.isfinite(logs[place]):
            continue
        middle = float(np.median(before))
        mad = max(float(np.median(np.abs(before - middle))), _SMALLEST_MAD)
        limit = middle + _MADS * mad
        if logs[place] > limit and (place >= spike or np.median(logs[place : min(spike, end)]) > limit):
            while logs[place - 1] > limit:  # it may have left while its past was too short
                place -= 1
            return place, float(logs[place] - middle) / mad, math.exp(middle)
    return (end, math.inf, _median(values[:end])) if len(lost) else (None, 0.0, math.nan)


def _median(values: FloatArray) -> float:
    """Return the median of the known values; nan if there are none."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _module(tensor: str) -> str:
    """Return the name of the module that holds a parameter; the parameter itself if that is the network."""
    return tensor.rpartition(".")[0] or tensor


def _key(one: Departure) -> tuple[int, float]:
    """Return the order of departures: by step, the largest first."""
    return one.step, -one.mads
