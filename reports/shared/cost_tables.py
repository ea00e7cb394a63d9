"""Tables of the cost of curvature, of the steps, and of the recording overhead by instrument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.recording.overhead import INSTRUMENTS
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.evaluation_tables import MOST_RUNS
from lossscope.reports.shared.quantities import curvature_cost, median_and_range, number, overhead_percent

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
    """Return the cost of curvature, one row per run, or of many runs one per arm: median [range over runs]."""
    costs = [(run, curvature_cost(run)) for run in runs]
    rows = tuple(
        (run.name, cost.evaluations, cost.products, cost.seconds, cost.gradients, overhead_percent(run))
        for run, cost in costs
    )
    return _few(Table("cost", "Cost", _COST_COLUMNS, rows), runs)


def overhead_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the recording overhead by instrument, one row per run or arm; empty if no run recorded it."""
    found = [(run, {kind.key: _percent(run, kind.key) for kind in _KINDS}) for run in runs]
    kinds = [kind for kind in _KINDS if any(shares[kind.key] for _, shares in found)]
    if not kinds:
        return ()
    columns = (Column("run", "run", words=True), Column("all", "total", "%"), *kinds)
    rows = tuple((run.name, overhead_percent(run), *(shares[kind.key] for kind in kinds)) for run, shares in found)
    return (_few(Table("overhead", "Recording overhead by instrument", columns, rows, _OVERHEAD_NOTE), runs),)


def _few(table: Table, runs: Sequence[Run]) -> Table:
    """Return a table of runs; of many runs the medians and ranges of each arm."""
    if len(runs) <= MOST_RUNS:
        return table
    rows: list[tuple[Cell, ...]] = []
    for arm, members in by_arm(runs).items():
        names = {run.name for run in members}
        numbers = list(zip(*(row[1:] for row in table.rows if row[0] in names), strict=True))
        rows.append((arm, len(members), *(median_and_range(map(number, column)) for column in numbers)))
    columns = (Column("arm", "arm", words=True), Column("runs", "runs"), *table.columns[1:])
    return replace(table, title=f"{table.title}: median [range over runs]", columns=columns, rows=tuple(rows))


def pace_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return steps, passes and wall time, one row per run; empty if no run recorded passes or time."""
    paced = [run for run in runs if run.columns("steps", "passes", "seconds").notna().any(axis=None)]
    rows = tuple(_pace(run) for run in paced)
    return (_few(Table("pace", "Steps, passes and time", _PACE_COLUMNS, rows), runs),) if rows else ()


def _pace(run: Run) -> tuple[Cell, ...]:
    """Return the row of a run."""
    steps = run.columns("steps", "passes", "seconds", "synced")
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
