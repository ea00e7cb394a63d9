"""The table of curvature by module: blocks that add up to the whole, and what lies between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.quantities import number, row_quantity

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["module_table"]

_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("step", "step"),
    Column("block", "block", words=True),
    Column("trace", "trace ± SE", "nats", "of the diagonal block of this module's parameters"),
    Column("trace_share", "share of the trace", "%"),
    Column("lambda_max", "λ_max ± bound", "nats", "of the block; at most that of the whole"),
    Column("frobenius_share", "share of ‖H‖_F²", "%", "squared norm of the block over that of the whole"),
)
_NOTE: Final = (
    "Each block is the curvature with all other parameters held where they are. Traces add up to the whole; squared "
    "norms do so together with what lies between the blocks, which a block-diagonal picture leaves out."
)
_MEASURES: Final = ("trace", "trace_share", "lambda_max", "frobenius_share")


def module_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """The blocks of each run at the last step that has them; nothing where no run has any."""
    rows = tuple(row for run in runs for row in _of_run(run))
    return (Table("modules", "Curvature by module", _COLUMNS, rows, _NOTE),) if rows else ()


def _of_run(run: Run) -> Iterable[tuple[Cell, ...]]:
    """The blocks of a run, what lies between them, and their sum."""
    rows = run.estimates[run.estimates["tensor"].notna()]
    if not len(rows):
        return
    step = int(rows["step"].max())
    blocks: dict[str, dict[str, Any]] = {}
    for row in rows[rows["step"] == step].to_dict("records"):
        blocks.setdefault(str(row["tensor"]), {})[str(row["measure"])] = row
    for name, block in blocks.items():
        trace, share, top, square = (_quantity(block.get(measure)) for measure in _MEASURES)
        yield run.name, step, name, _without_interval(trace), _percent(share), top, _percent(square)
    cross, top = _whole(run, step, "cross_block_share"), _whole(run, step, "lambda_max")
    yield run.name, step, "between blocks", None, None, None, _percent(cross)
    shares = [_quantity(block.get("frobenius_share")).value for block in blocks.values()]
    norm = None if cross.value is None or None in shares else 100 * (cross.value + sum(one or 0.0 for one in shares))
    yield run.name, step, "the whole", _sum([_quantity(one.get("trace")) for one in blocks.values()]), 100.0, top, norm


def _quantity(row: Mapping[Any, Any] | None) -> Quantity:
    """A row as a quantity; a gap where there is none."""
    return Quantity(None) if row is None else row_quantity(row)


def _whole(run: Run, step: int, measure: str) -> Quantity:
    """A measure of the whole model at a step."""
    rows = run.estimates
    rows = rows[(rows["step"] == step) & (rows["measure"] == measure) & rows["tensor"].isna()]
    return _quantity(rows.iloc[-1].to_dict() if len(rows) else None)


def _sum(traces: Sequence[Quantity]) -> Quantity:
    """The sum of independent numbers: errors add in quadrature; a gap where one is missing."""
    if any(number(one.value) is None for one in traces):
        return Quantity(None)
    return Quantity(sum(one.value or 0.0 for one in traces), error=math.hypot(*(one.error or 0.0 for one in traces)))


def _without_interval(quantity: Quantity) -> Quantity:
    """Value and error alone: the table is wide enough."""
    return Quantity(quantity.value, error=quantity.error)


def _percent(share: Quantity) -> Quantity:
    """A share with its error in percent."""
    if share.value is None:
        return share
    return Quantity(100 * share.value, error=None if share.error is None else 100 * share.error)
