"""A run as lines of JSON in the manner of Weights & Biases: one object for each step, with names that have slashes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["history"]

_NUMBERS: Final = ("value", "low", "high")  # of an estimate


def history(run: Run) -> Iterator[str]:
    """Yield one JSON object for each step that has a number, ascending.

    The step is `_step`. A column of `steps` has its name, a measure of the whole model is `curvature/NAME` with
    `curvature/NAME/low` and `/high`, one of a tensor `curvature/NAME/TENSOR`, a column of `tensors` is
    `tensors/TENSOR/NAME`. What is missing or not finite is left out.

    Args:
        run: The run.
    """
    by_step: dict[int, dict[str, object]] = {}
    for step, name, value in _numbers(run):
        if (kept := _json(value)) is not None:
            by_step.setdefault(step, {})[name] = kept
    for step in sorted(by_step):
        yield json.dumps({"_step": step, **by_step[step]}, ensure_ascii=False, allow_nan=False)


def _numbers(run: Run) -> Iterator[tuple[int, str, object]]:
    """Yield step, name and value of all numbers."""
    for row in _rows(run.steps):
        for column, value in row.items():
            if column != "step":
                yield int(row["step"]), column, value
    for row in _rows(run.tensors):
        for column, value in row.items():
            if column not in ("step", "tensor"):
                yield int(row["step"]), f"tensors/{row['tensor']}/{column}", value
    for row in _rows(run.estimates):
        tensor = f"/{row['tensor']}" if isinstance(row.get("tensor"), str) else ""
        for column in _NUMBERS:
            end = "" if column == "value" else f"/{column}"
            yield int(row["step"]), f"curvature/{row['measure']}{tensor}{end}", row[column]


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _json(value: object) -> object:
    """Return a number, flag or text as JSON has it; None for what is missing or not finite."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float | np.number):
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if math.isfinite(value) else None
