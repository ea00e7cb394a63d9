"""A run as an object for each step, all numbers by name, and as the lines of JSON that Weights & Biases has."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["Step", "history", "start_of", "steps_of"]

Step: TypeAlias = tuple[int, dict[str, bool | int | float | str]]  # a step and what it has by name

_ENDS: Final = {"value": "", "low": "/low", "high": "/high"}  # of an estimate, and what they add to its name
_AT_ONCE: Final = 10_000  # rows that are turned into objects at once


def history(run: Run) -> Iterator[str]:
    """Yield one JSON object for each step that has a number, ascending.

    The step is `_step`; `_runtime` is the time in seconds since recording started and `_timestamp` the same in seconds
    since 1970, at steps with a time. The other names are those of `steps_of`.

    Args:
        run: The run.
    """
    begun = start_of(run)
    for step, found in steps_of(run):
        seconds = found.get("seconds")
        times = {} if seconds is None else {"_runtime": seconds}
        if isinstance(seconds, int | float) and begun is not None:
            times["_timestamp"] = begun + seconds
        yield json.dumps({"_step": step, **times, **found}, ensure_ascii=False, allow_nan=False)


def steps_of(run: Run) -> Iterator[Step]:
    """Yield each step that has a number, ascending, with what was recorded of it by name.

    A column of `steps` has its name, a measure of the whole model is `curvature/NAME` with `curvature/NAME/low` and
    `/high`, one of a tensor `curvature/NAME/TENSOR`, a column of `tensors` is `tensors/TENSOR/NAME`. What is missing or
    not finite is left out.

    Args:
        run: The run.
    """
    parts = heapq.merge(_steps(run), _tensors(run), _estimates(run), key=itemgetter(0))
    for step, group in groupby(parts, key=itemgetter(0)):
        found = {name: kept for _, part in group for name, value in part.items() if (kept := _plain(value)) is not None}
        if found:
            yield step, found


def start_of(run: Run) -> float | None:
    """Return the time at which a run was created in seconds since 1970; None if its manifest does not have it."""
    try:
        return datetime.fromisoformat(str(run.manifest.get("created"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _steps(run: Run) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the rows of `steps`."""
    for row in _rows(run.steps):
        yield int(row.pop("step")), row


def _tensors(run: Run) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the rows of `tensors`, named by tensor."""
    for row in _rows(run.tensors):
        step, tensor = int(row.pop("step")), row.pop("tensor")
        yield step, {f"tensors/{tensor}/{column}": value for column, value in row.items()}


def _estimates(run: Run) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the rows of `estimates`, named by measure and tensor."""
    for row in _rows(run.estimates):
        tensor = f"/{row['tensor']}" if isinstance(row.get("tensor"), str) else ""
        name = f"curvature/{row['measure']}{tensor}"
        yield int(row["step"]), {f"{name}{end}": row[column] for column, end in _ENDS.items()}


def _rows(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the rows as dictionaries."""
    for begin in range(0, len(frame), _AT_ONCE):
        for row in frame.iloc[begin : begin + _AT_ONCE].to_dict("records"):
            yield {str(key): value for key, value in row.items()}


def _plain(value: object) -> bool | int | float | str | None:
    """Return a number, flag or text as Python has it; None for what is missing or not finite."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float | np.number):
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if math.isfinite(value) else None
