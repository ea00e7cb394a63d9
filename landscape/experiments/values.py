"""Values of each run of an ablation at the level, one row a run: what the ratios of verdicts are made of."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, Final, TypeAlias

from lossscope.landscape.experiments.ablation import Ablation
from lossscope.landscape.run import Run
from lossscope.landscape.verdicts.figures import test_loss_at
from lossscope.landscape.verdicts.level import Crossing, LossName, Value, crossing, loss_name, spent, value
from lossscope.landscape.verdicts.verdict import PANEL, RAW

__all__ = ["COLUMNS", "csv_text", "values_of"]

Values: TypeAlias = dict[str, Any]

_MEASURES: Final = tuple(one.measure for one in (*PANEL, RAW))
COLUMNS: Final = (
    *("run", "workload", "arm", "seed", "status", "why", "level", "step"),
    *(*_MEASURES, "test_loss", "gradients", "ascents"),
)


def values_of(ablation: Ablation, level: float | None) -> list[Values]:
    """Return a row for each run of an ablation; numbers that are missing are None.

    Args:
        ablation: The ablation.
        level: Training loss at which the numbers are read.
    """
    runs = {run.name: run for run in ablation.runs}
    loss = loss_name(list(runs.values()))
    rows = []
    for one in ablation.outcomes:
        row: Values = dict.fromkeys(COLUMNS)
        row |= {"run": one.name, "workload": one.workload, "arm": one.arm, "seed": one.seed}
        row |= {"status": one.status, "why": one.why, "level": level}
        if level is not None and one.name in runs:
            row |= _numbers(runs[one.name], level, loss)
        rows.append(row)
    return rows


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header; missing numbers are empty."""
    out = StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _numbers(run: Run, level: float, loss: LossName) -> Values:
    """Return the numbers of a run at the level."""
    at = crossing(run, level, loss)
    if not isinstance(at, Crossing):
        return {"why": f"{at.code}: {at.text}"}
    gradients, ascents = spent(run, at.step)
    found = {name: _measure(run, at, name) for name in _MEASURES}
    rest = {"test_loss": test_loss_at(run, level, loss), "gradients": gradients, "ascents": ascents}
    return {"step": at.step, **found, **{key: one if math.isfinite(one) else None for key, one in rest.items()}}


def _measure(run: Run, at: Crossing, name: str) -> float | None:
    """Return a measure at the level; None if it is missing."""
    found = value(run, at, name)
    return math.exp(found.log) if isinstance(found, Value) else None
