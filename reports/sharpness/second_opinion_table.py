"""The table of second opinions: another library's numbers beside ours, at the same checkpoint and data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lossscope.landscape.storage.deduplicate import OWN_ENGINE
from lossscope.reports.content import Cell, Column, Quantity, Table
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
    Column("ours", "lossscope ± error", "nats", "standard error, or bound"),
    Column("engine", "the other", words=True),
    Column("theirs", "its number ± error", "nats", "standard error of its samples, or the residual of its vector"),
    Column("apart", "apart", "%", "difference over our number"),
    Column("our_products", "products", "", "Hessian products of our call, with everything else that it measured"),
    Column("their_products", "its products"),
)
_NOTE: Final = (
    "PyHessian stops when a number changes little, which bounds nothing: the error beside its eigenvalues is the "
    "residual as measured by lossscope. It finds the largest |λ|, which is λ_max unless a negative eigenvalue is "
    "larger. Its density does not run on this torch: the density shown here is lossscope's."
)
_NUMBER: Final = ("step", "measure", "mode", "loss_kind", "data_hash")


def opinion_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Every number that another engine has measured, last step first to last; nothing where there is none."""
    rows = tuple(row for run in runs for row in _of_run(run))
    return (Table("opinions", "Second opinions", _COLUMNS, rows, _NOTE),) if rows else ()


def _of_run(run: Run) -> Iterable[tuple[Cell, ...]]:
    """The second opinions of a run; of several of one engine at one step the last."""
    probes = run.probes[run.probes["tensor"].isna()]
    engines = probes["engine"].fillna(OWN_ENGINE)
    ours = _by_number(probes[engines == OWN_ENGINE], _NUMBER)
    for row in _by_number(probes[engines != OWN_ENGINE], (*_NUMBER, "engine")).values():
        yield _row(run, row, ours.get(_key(row, _NUMBER)))


def _by_number(rows: pd.DataFrame, key: Sequence[str]) -> dict[tuple[object, ...], Row]:
    """The row written last of each number."""
    records = [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
    return {_key(row, key): row for row in records}


def _key(row: Row, columns: Sequence[str]) -> tuple[object, ...]:
    """What says which number a row is of; a missing word is none."""
    return tuple(row[column] if isinstance(row[column], str | int) else None for column in columns)


def _row(run: Run, theirs: Row, ours: Row | None) -> tuple[Cell, ...]:
    """Both numbers side by side."""
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
    """A whole number, or a gap."""
    found = number(value)
    return None if found is None else int(found)
