"""What recording cost: curvature in products and gradients, and each instrument's share of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.recording.overhead import INSTRUMENTS
from lossscope.reports.content import Column, Table
from lossscope.reports.shared.quantities import curvature_cost, number, overhead_percent

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["cost_table", "overhead_table"]

_COST_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("evaluations", "evaluations", "", "curvature evaluations"),
    Column("products", "products", "", "Hessian products spent"),
    Column("seconds", "curvature", "s", "time spent on curvature"),
    Column("gradients", "gradients", "", "the same time in gradients of the same loss, where rows say"),
    Column("overhead", "recorder's share", "%", "share of the wall time spent in the recorder"),
)
_KINDS: Final = tuple(Column(kind, words, "%") for kind, words in INSTRUMENTS.items())
_OVERHEAD_NOTE: Final = "Shares of the wall time of recording sessions. An instrument that a run did not have is a gap."


def cost_table(runs: Sequence[Run]) -> Table:
    """What curvature cost, a row per run."""
    costs = [(run, curvature_cost(run)) for run in runs]
    rows = tuple(
        (run.name, cost.evaluations, cost.products, cost.seconds, cost.gradients, overhead_percent(run))
        for run, cost in costs
    )
    return Table("cost", "What it cost", _COST_COLUMNS, rows)


def overhead_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """The recorder's share of the time by instrument, a row per run; nothing where no run tells it."""
    found = [(run, {kind.key: _percent(run, kind.key) for kind in _KINDS}) for run in runs]
    kinds = [kind for kind in _KINDS if any(shares[kind.key] for _, shares in found)]
    if not kinds:
        return ()
    columns = (Column("run", "run", words=True), Column("all", "all of it", "%"), *kinds)
    rows = tuple((run.name, overhead_percent(run), *(shares[kind.key] for kind in kinds)) for run, shares in found)
    return (Table("overhead", "The recorder's share of the time, by instrument", columns, rows, _OVERHEAD_NOTE),)


def _percent(run: Run, kind: str) -> float | None:
    """A kind's share of the wall time in percent; a gap where the run has none of it."""
    overhead = run.manifest.get("overhead")
    share = number(overhead.get(f"{kind}_share")) if isinstance(overhead, Mapping) else None
    return 100 * share if share else None
