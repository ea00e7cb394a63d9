"""Row codec: Python values to Arrow record batches when writing, Arrow tables to pandas data frames when reading.

Each value is checked against the declaration of its column before it is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lossscope.landscape.storage.schema import LONGEST_CELL, TABLES, Column, arrow_schema

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cells", "cells", "frame", "load_libraries", "record_batch", "series"]

Cells: TypeAlias = tuple[Any, ...]  # one value for each column of the table, in the schema's order
_INT64: Final = range(-(2**63), 2**63)


def cells(table: str, row: Mapping[str, object]) -> Cells:
    """Return the values of a row in the order of the table's columns, None for missing values and nan.

    Lists are copied, so the caller may modify its arrays afterwards.

    Args:
        table: A key of `TABLES`.
        row: Column names to values: Python or numpy numbers, text, None; 1-D sequences for lists.

    Raises:
        ValueError: The table or a column is unknown, a required value is missing, or a value has the wrong type.
    """
    columns = _COLUMNS.get(table)
    if columns is None:
        raise ValueError(f"unknown table {table!r}: use one of {', '.join(TABLES)}")
    if not columns.keys() >= row.keys():
        unknown = next(key for key in row if key not in columns)
        raise ValueError(f"table {table} has no column {unknown!r}: see lossscope.landscape.storage.schema")
    values: list[object] = [None] * len(columns)
    for name, value in row.items():
        place, column = columns[name]
        values[place] = _cell(table, column, value)
    for place, column in _REQUIRED[table]:
        if values[place] is None:
            _cell(table, column, None)  # raises, as it is required
    return tuple(values)


def load_libraries() -> None:
    """Load what the first record batch needs: pyarrow imports pandas then, about a second once per process."""
    pa.array([0.0])


def record_batch(table: str, rows: Sequence[Cells]) -> pa.RecordBatch:
    """Return rows as one Arrow record batch with the table's schema."""
    schema = arrow_schema(table)
    arrays = [
        pa.array(values, field.type, from_pandas=True)
        for values, field in zip(zip(*rows, strict=True), schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def frame(rows: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a data frame.

    A float column becomes float64 with nan for null. A required integer column becomes int64, any other Int64; a
    boolean column becomes boolean (both with pd.NA). Text becomes object with None, lists become object: float64
    arrays with nan for nulls inside.
    """
    import pandas as pd

    return pd.DataFrame(series(rows), copy=False)  # each is its own; joining them into blocks would double the memory


def series(rows: pa.Table) -> dict[str, pd.Series[Any]]:
    """Return the columns of an Arrow table as `frame` has them."""
    return {field.name: _series(rows[field.name], field) for field in rows.schema}


def _cell(table: str, column: Column, value: object) -> object:
    """Return a value converted to the plain Python type of its column."""
    if value is not None:
        converted = _CONVERTERS[column.type](value)
        if converted is NotImplemented:
            raise ValueError(
                f"column {column.name!r} of table {table} holds {column.type} values, "
                f"got a {type(value).__name__} that does not fit"
            )
        value = converted
    if value is None and column.required:
        raise ValueError(f"column {column.name!r} of table {table} is required: it is missing, None or nan")
    return value


def _float(value: object) -> object:
    """Return a number as float, nan as None."""
    if type(value) is not float:
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
            return NotImplemented
        try:
            value = float(value)
        except OverflowError:
            return NotImplemented
    return value if value == value else None


def _int(value: object) -> object:
    """Return an integer that fits into 64 bits; nan as None."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value) if int(value) in _INT64 else NotImplemented
    return None if isinstance(value, float | np.floating) and value != value else NotImplemented


def _bool(value: object) -> object:
    """Return a Python or numpy boolean as bool."""
    return bool(value) if isinstance(value, bool | np.bool_) else NotImplemented


def _text(value: object) -> object:
    """Return a string that UTF-8 can encode and readers accept."""
    if not isinstance(value, str) or len(value) > LONGEST_CELL:
        return NotImplemented
    try:
        value.encode()
    except UnicodeEncodeError:
        return NotImplemented
    return str(value)


def _floats(value: object) -> object:
    """Return a float64 copy of a 1-D sequence of numbers; None inside becomes nan, which is stored as null."""
    if not isinstance(value, list | tuple | np.ndarray):
        return NotImplemented
    array = np.asarray(value, dtype=object if isinstance(value, list | tuple) and None in value else None)
    numbers = array.dtype.kind in "fiu" or all(
        item is None or _float(item) is not NotImplemented for item in array.flat
    )
    return np.array(array, dtype=np.float64) if array.ndim == 1 and numbers else NotImplemented


_COLUMNS: Final = {
    table: {column.name: (place, column) for place, column in enumerate(columns)} for table, columns in TABLES.items()
}
_REQUIRED: Final = {table: [one for one in columns.values() if one[1].required] for table, columns in _COLUMNS.items()}
# Each returns NotImplemented for a value that does not fit, so that `_cell` can name the column.
_CONVERTERS: Final[dict[str, Callable[[object], object]]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "text": _text,
    "floats": _floats,
}


def _series(chunks: pa.ChunkedArray, field: pa.Field) -> pd.Series[Any]:
    """Return one Arrow column as a pandas series with memory of its own."""
    import pandas as pd

    if pa.types.is_floating(field.type):
        return pd.Series(_own(chunks.to_numpy()))
    if pa.types.is_integer(field.type) and not field.nullable:
        return pd.Series(_own(chunks.to_numpy()))
    column = chunks.combine_chunks()
    if pa.types.is_integer(field.type) or pa.types.is_boolean(field.type):
        missing = column.is_null().to_numpy(zero_copy_only=False)
        if pa.types.is_integer(field.type):
            return pd.Series(pd.arrays.IntegerArray(_own(column.fill_null(0).to_numpy()), missing))
        true = _own(column.fill_null(False).to_numpy(zero_copy_only=False))
        return pd.Series(pd.arrays.BooleanArray(true, missing))
    if pa.types.is_string(field.type):
        return pd.Series(_texts(column), dtype=object)
    objects = np.empty(len(column), dtype=object)
    objects[:] = column.to_numpy(zero_copy_only=False)
    return pd.Series(objects, dtype=object)


def _own(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values in memory that can be written; a view of Arrow's cannot."""
    return values if values.flags.writeable else values.copy()


def _texts(column: pa.StringArray) -> NDArray[np.object_]:
    """Return texts as an array of objects, None for null; equal ones are one object, so names cost a pointer a row."""
    coded = column.dictionary_encode()
    words = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    found: NDArray[np.object_] = words[coded.indices.fill_null(len(words) - 1).to_numpy()]
    return found
