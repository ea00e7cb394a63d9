"""Columns of Arrow as arrays of numpy, without pandas: pyarrow's own conversions import it, which takes 0.3 s."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["floats_of", "steps_of"]


def floats_of(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return numbers or flags as float64, nan for null; the array is a copy."""
    known = np.array(_array(column.drop_null().cast(pa.float64())), dtype=np.float64)
    if not column.null_count:
        return known
    found = np.full(len(column), np.nan)
    found[_array(column.is_valid().cast(pa.int8())) == 1] = known
    return found


def steps_of(rows: pa.Table) -> NDArray[np.int64]:
    """Return the steps of rows, none of which is null."""
    return np.asarray(_array(rows["step"].cast(pa.int64())), dtype=np.int64)


def _array(column: pa.ChunkedArray) -> NDArray[np.generic]:
    """Return numbers without nulls as an array that shares their memory, if they are one chunk."""
    chunks = [np.from_dlpack(chunk) for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.empty(0)
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
