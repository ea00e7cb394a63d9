"""Tables of the cost of curvature, of the steps, and of the recording overhead by instrument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.recording.overhead import INSTRUMENTS
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.quantities import curvature_cost, number, overhead_percent

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["cost_table", "overhead_table", "pace_table"]

_COST_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("evaluations", "evaluations", "", "curvature evaluations"),
    Column("products", "products", "", "Hessian-vector products used"),
    Column("seconds", "curvature", "s", "wall time of the curvature evaluations"),
    Column("gradients", "gradients", "", "the same time in units of one gradient of the same loss, if recorded"),
    Column("overhead", "overhead", "%", "share of the wall time spent on recording"),
)
_PACE_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("steps", "steps", "", "recorded steps"),
    Column("second", "second gradients", "", "steps that took a second, adversarial gradient"),
    Column("passes", "passes per step", "", "forward and backward passes, mean over the steps"),
    Column("seconds", "wall time", "s", "from the start of recording to the last step, recording and pauses included"),
)
_KINDS: Final = tuple(Column(kind, words, "%") for kind, words in INSTRUMENTS.items())
_OVERHEAD_NOTE: Final = (
    "Shares of the wall time of the recording sessions. Missing: the run did not use that instrument."
)


def cost_table(runs: Sequence[Run]) -> Table:
    """Return the cost of curvature, one row per run."""
    costs = [(run, curvature_cost(run)) for run in runs]
    rows = tuple(
        (run.name, cost.evaluations, cost.products, cost.seconds, cost.gradients, overhead_percent(run))
        for run, cost in costs
    )
    return Table("cost", "Cost", _COST_COLUMNS, rows)


def overhead_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the recording overhead by instrument, one row per run; empty if no run recorded it."""
    found = [(run, {kind.key: _percent(run, kind.key) for kind in _KINDS}) for run in runs]
    kinds = [kind for kind in _KINDS if any(shares[kind.key] for _, shares in found)]
    if not kinds:
        return ()
    columns = (Column("run", "run", words=True), Column("all", "total", "%"), *kinds)
    rows = tuple((run.name, overhead_percent(run), *(shares[kind.key] for kind in kinds)) for run, shares in found)
    return (Table("overhead", "Recording overhead by instrument", columns, rows, _OVERHEAD_NOTE),)


def pace_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return steps, passes and wall time, one row per run; empty if no run recorded passes or time."""
    rows = tuple(_pace(run) for run in runs if run.steps[["passes", "seconds"]].notna().any(axis=None))
    return (Table("pace", "Steps, passes and time", _PACE_COLUMNS, rows),) if rows else ()


def _pace(run: Run) -> tuple[Cell, ...]:
    """Return the row of a run."""
    steps = run.steps
    passes, seconds, synced = (steps[column].dropna() for column in ("passes", "seconds", "synced"))
    return (
        run.name,
        len(steps),
        int(synced.eq(True).sum()) if len(synced) else None,
        number(float(passes.mean())) if len(passes) else None,
        number(float(seconds.max())) if len(seconds) else None,
    )


def _percent(run: Run, kind: str) -> float | None:
    """Return an instrument's share of the wall time in percent; None if the run did not use it."""
    overhead = run.manifest.get("overhead")
    share = number(overhead.get(f"{kind}_share")) if isinstance(overhead, Mapping) else None
    return 100 * share if share else None
