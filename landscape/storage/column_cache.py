"""Columns of a run's tables as series, read from disk one by one and kept up to a bound on their memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lossscope.landscape.storage.plain_arrays import floats_of
from lossscope.landscape.storage.row_codec import frame, series
from lossscope.landscape.storage.run_tables import RunTables
from lossscope.landscape.storage.schema import TABLES

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ColumnCache", "of_frame"]

_CELLS: Final = 8_000_000  # that are read at once, as Arrow holds them a second time meanwhile
_FEW: Final = 50_000  # rows whose numbers are kept as arrays: of many short runs, series take longer than reading
_MOST_BYTES: Final = 2**28  # of all columns that are kept: 16 columns of two million rows


class ColumnCache:
    """Columns read so far, those used last. All columns of a table are of one state of it.

    Lists are never kept, as each of them is an array of its own.

    Args:
        tables: The tables of the run.
    """

    def __init__(self, tables: RunTables) -> None:
        self._tables = tables
        self._steps: dict[str, pd.Series[Any]] = {}
        self._kept: OrderedDict[tuple[str, str], pd.Series[Any]] = OrderedDict()
        self._last: dict[str, pd.DataFrame] = {}
        self._few: dict[str, dict[str, NDArray[np.float64]]] = {}

    def frame(self, table: str, names: Sequence[str]) -> pd.DataFrame:
        """Return columns of a table as a data frame, whose values must not be changed in place.

        Args:
            table: A key of `TABLES`.
            names: Names of its columns; of a list `values` also `values.first` (nan for an empty one) and
                `values.length`, which take a hundredth of its memory.

        Raises:
            RunError: What is read of its files is corrupted.
        """
        import pandas as pd

        return pd.DataFrame(self.series(table, names), copy=False)

    def series(self, table: str, names: Sequence[str]) -> dict[str, pd.Series[Any]]:
        """Return columns of a table by name, as `frame` does."""
        found = {name: self._kept[table, name] for name in names if (table, name) in self._kept}
        if table in self._steps:
            found["step"] = self._steps[table]
        if table not in self._steps or not found.keys() >= {*names}:
            found = self._read(table, names, found)
            self._keep(table, found)
        for name in names:
            if (table, name) in self._kept:
                self._kept.move_to_end((table, name))
        return {name: found[name] for name in names}

    def numbers(self, table: str, names: Sequence[str]) -> list[NDArray[np.float64]]:
        """Return columns of numbers or flags as float64 arrays with nan for null; without series of few rows.

        Args:
            table: A key of `TABLES`.
            names: Names of its columns.

        Raises:
            RunError: What is read of its files is corrupted.
        """
        if table not in self._steps:
            known = self._few.get(table, {})
            if not known.keys() >= {*names}:
                rows = self._tables.rows(table, names)
                known = {name: floats_of(rows[name]) for name in names} if len(rows) <= _FEW else {}
                self._few[table] = known
            if known:
                return [known[name] for name in names]
        return [one.to_numpy(dtype=np.float64, na_value=np.nan) for one in self.series(table, names).values()]

    def last_rows(self, table: str) -> pd.DataFrame:
        """Return the rows of a table at its last step, with all columns.

        Args:
            table: A key of `TABLES`.

        Raises:
            RunError: What is read of its files is corrupted.
        """
        if table not in self._last:
            steps = self.frame(table, ["step"])["step"]
            last = int(steps.iloc[-1]) if len(steps) else 0
            self._last[table] = frame(self._tables.rows(table, since=last))
        return self._last[table]

    def _read(self, table: str, names: Sequence[str], known: dict[str, pd.Series[Any]]) -> dict[str, pd.Series[Any]]:
        """Return the columns, those not known from disk; all of them if the table has other rows than before."""
        found, wanted = dict(known), [name for name in names if name not in known]
        size = max(1, _CELLS // len(self._steps[table])) if len(self._steps.get(table, ())) else len(wanted)
        for part in [wanted[begin : begin + size] for begin in range(0, len(wanted), size)] or [[]]:
            rows = self._rows(table, part)
            if "step" in found and not np.array_equal(rows["step"].to_numpy(), found["step"].to_numpy()):
                self._forget(table)
                rows = self._rows(table, names)
                return rows
            found |= rows
        return found

    def _rows(self, table: str, names: Sequence[str]) -> dict[str, pd.Series[Any]]:
        """Return `step` and columns of a table from disk; of a list `NAME.first` and `NAME.length` without the list."""
        lists = {name.partition(".")[0] for name in names if "." in name}
        rows = self._tables.rows(table, [*(name for name in names if "." not in name), *lists])
        found = series(rows.drop_columns([name for name in lists if name not in names]) if lists else rows)
        for name in lists:
            found |= _of_lists(name, rows[name])
        return found

    def _keep(self, table: str, found: dict[str, pd.Series[Any]]) -> None:
        """Keep columns, and forget those used longest ago beyond the bound."""
        lists = {column.name for column in TABLES[table] if column.type == "floats"}
        self._steps[table] = found["step"]
        for name in found.keys() - lists - {"step"}:
            self._kept[table, name] = found[name]
        size = sum(one.memory_usage(index=False) for one in self._kept.values())
        while size > _MOST_BYTES:
            _, oldest = self._kept.popitem(last=False)
            size -= oldest.memory_usage(index=False)

    def _forget(self, table: str) -> None:
        """Forget everything of a table."""
        self._last.pop(table, None)
        for key in [key for key in self._kept if key[0] == table]:
            del self._kept[key]


def of_frame(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return columns of a whole table as `ColumnCache.frame` does."""
    import pandas as pd

    found = {}
    for name in names:
        column, _, part = name.partition(".")
        lists = rows[column]
        if part == "first":
            found[name] = pd.Series([float(one[0]) if len(one) else np.nan for one in lists], lists.index, np.float64)
        elif part == "length":
            found[name] = pd.Series([len(one) for one in lists], lists.index, np.int64)
        else:
            found[name] = lists
    return pd.DataFrame(found)


def _of_lists(name: str, column: pa.ChunkedArray) -> dict[str, pd.Series[Any]]:
    """Return the first entry and the length of each list."""
    import pandas as pd

    whole = column.combine_chunks()
    offsets = whole.offsets.to_numpy()
    lengths = np.diff(offsets).astype(np.int64)
    first = np.full(len(lengths), np.nan)
    entries = np.array(whole.values.to_numpy(zero_copy_only=False), dtype=np.float64)
    first[lengths > 0] = entries[offsets[:-1][lengths > 0]]
    return {f"{name}.first": pd.Series(first), f"{name}.length": pd.Series(lengths)}
