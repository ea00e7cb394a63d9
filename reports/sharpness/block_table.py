"""Table of curvature by module: diagonal blocks, which add up to the whole with the part between the blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.known_errors import with_known_error
from lossscope.reports.shared.loss_unit import LOSS
from lossscope.reports.shared.quantities import number, row_quantity

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["module_table"]

_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("step", "step"),
    Column("block", "block", words=True),
    Column("trace", "trace ± SE", LOSS, "of the diagonal block of this module's parameters"),
    Column("trace_share", "share of the trace", "%"),
    Column("lambda_max", "λ_max ± bound", LOSS, "of the block; at most that of the whole"),
    Column("frobenius_share", "share of ‖H‖_F²", "%", "squared norm of the block over that of the whole"),
)
_NOTE: Final = (
    "Each block is the curvature with all other parameters fixed. Traces add up to the whole trace; squared norms add "
    "up to the whole only together with the part between the blocks, which a block-diagonal approximation drops."
)
_MEASURES: Final = ("trace", "trace_share", "lambda_max", "frobenius_share")


def module_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the table of blocks of each run at the last step that has them; none if no run has any."""
    rows = tuple(row for run in runs for row in _of_run(run))
    return (Table("modules", "Curvature by module", _COLUMNS, rows, _NOTE),) if rows else ()


def _of_run(run: Run) -> Iterable[tuple[Cell, ...]]:
    """Yield the blocks of a run, the part between them, and their sum."""
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
    """Return a row as a quantity; missing if there is no row."""
    return Quantity(None) if row is None else row_quantity(row)


def _whole(run: Run, step: int, measure: str) -> Quantity:
    """Return a measure of the whole model at a step."""
    rows = run.estimates
    rows = rows[(rows["step"] == step) & (rows["measure"] == measure) & rows["tensor"].isna()]
    return with_known_error(_quantity(rows.iloc[-1].to_dict() if len(rows) else None), run, step, measure)


def _sum(traces: Sequence[Quantity]) -> Quantity:
    """Return the sum of independent estimates: errors add in quadrature; missing if one of them is."""
    if any(number(one.value) is None for one in traces):
        return Quantity(None)
    return Quantity(sum(one.value or 0.0 for one in traces), error=math.hypot(*(one.error or 0.0 for one in traces)))


def _without_interval(quantity: Quantity) -> Quantity:
    """Return value and error only, to keep the table narrow."""
    return Quantity(quantity.value, error=quantity.error)


def _percent(share: Quantity) -> Quantity:
    """Return a share and its error in percent."""
    if share.value is None:
        return share
    return Quantity(100 * share.value, error=None if share.error is None else 100 * share.error)
