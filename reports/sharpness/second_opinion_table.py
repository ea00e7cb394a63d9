"""Table of second opinions: another library's values beside ours, at the same checkpoint and on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lossscope.landscape.storage.deduplicate import OWN_ENGINE
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.loss_unit import LOSS
from lossscope.reports.shared.quantities import number, row_quantity

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["opinion_table"]

Row: TypeAlias = dict[str, Any]

_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("step", "step"),
    Column("measure", "measure", words=True),
    Column("ours", "lossscope ± error", LOSS, "standard error, or bound"),
    Column("engine", "other engine", words=True),
    Column("theirs", "its value ± error", LOSS, "standard error of its samples, or the residual of its vector"),
    Column("apart", "difference", "%", "relative to our value"),
    Column("our_products", "products", "", "Hessian products of our group of measures, shared by all of its measures"),
    Column("their_products", "its products"),
)
_NOTE: Final = (
    "PyHessian stops when a value changes little, which certifies no error bound: the error of its eigenvalues is the "
    "residual computed by lossscope. It finds the largest |λ|, which is λ_max unless a negative eigenvalue has a "
    "larger magnitude. Its density does not run on this torch: the density shown here is lossscope's."
)
_NUMBER: Final = ("step", "measure", "mode", "loss_kind", "data_hash")


def opinion_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the table of all values that another engine measured; none if there are none."""
    rows = tuple(row for run in runs for row in _of_run(run))
    return (Table("opinions", "Second opinions", _COLUMNS, rows, _NOTE),) if rows else ()


def _of_run(run: Run) -> Iterable[tuple[Cell, ...]]:
    """Yield the second opinions of a run; if one engine measured a value twice at a step, the last."""
    probes = run.probes[run.probes["tensor"].isna()]
    engines = probes["engine"].fillna(OWN_ENGINE)
    ours = _by_number(probes[engines == OWN_ENGINE], _NUMBER)
    for row in _by_number(probes[engines != OWN_ENGINE], (*_NUMBER, "engine")).values():
        yield _row(run, row, ours.get(_key(row, _NUMBER)))


def _by_number(rows: pd.DataFrame, key: Sequence[str]) -> dict[tuple[object, ...], Row]:
    """Return the row written last for each key."""
    records = [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
    return {_key(row, key): row for row in records}


def _key(row: Row, columns: Sequence[str]) -> tuple[object, ...]:
    """Return the columns that identify the value of a row; missing text is None."""
    return tuple(row[column] if isinstance(row[column], str | int) else None for column in columns)


def _row(run: Run, theirs: Row, ours: Row | None) -> tuple[Cell, ...]:
    """Return a row with both values side by side."""
    mine = Quantity(None) if ours is None else row_quantity(ours)
    other = row_quantity(theirs)
    apart = None
    if mine.value and other.value is not None:
        apart = 100 * (other.value - mine.value) / abs(mine.value)
    products = None if ours is None else _whole(ours["products"])
    return (
        run.name,
        int(theirs["step"]),
        str(theirs["measure"]),
        Quantity(mine.value, error=mine.error),
        str(theirs["engine"]),
        Quantity(other.value, error=other.error),
        apart,
        products,
        _whole(theirs["products"]),
    )


def _whole(value: object) -> int | None:
    """Return an integer, or None if missing."""
    found = number(value)
    return None if found is None else int(found)
