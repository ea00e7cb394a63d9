"""Arrow tables as pandas data frames whose types do not depend on what happens to be in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["frame"]


def frame(rows: pa.Table) -> pd.DataFrame:
    """The rows as a data frame.

    A float is float64 with nan for null. A required integer is int64, any other Int64; a truth value is boolean (both
    with pd.NA). Text is object with None, a list is object: float64 arrays, nan for a null inside.
    """
    import pandas as pd

    return pd.DataFrame({field.name: _series(rows[field.name].combine_chunks(), field) for field in rows.schema})


def _series(column: pa.Array, field: pa.Field) -> pd.Series[Any]:
    """One column."""
    import pandas as pd

    missing = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(field.type):
        return pd.Series(np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64))
    if pa.types.is_integer(field.type):
        whole = np.array(column.fill_null(0).to_numpy(), dtype=np.int64)
        return pd.Series(pd.arrays.IntegerArray(whole, missing) if field.nullable else whole)
    if pa.types.is_boolean(field.type):
        true = np.array(column.fill_null(False).to_numpy(zero_copy_only=False), dtype=np.bool_)
        return pd.Series(pd.arrays.BooleanArray(true, missing))
    objects = np.empty(len(column), dtype=object)
    objects[:] = column.to_numpy(zero_copy_only=False)
    return pd.Series(objects, dtype=object)
