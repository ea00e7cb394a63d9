"""Columns of Arrow as arrays of numpy: values, nulls, flags, pieces; and a list of runs that needs no pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lossscope.landscape.storage.plain_arrays import floats_of, steps_of
from lossscope.landscape.storage.run_store import RunStore


@pytest.mark.parametrize(
    ("pieces", "kind", "expected"),
    [
        ([[1.5, None, -2.0]], pa.float64(), [1.5, np.nan, -2.0]),
        ([[1, 2], [], [None, 4]], pa.int64(), [1, 2, np.nan, 4]),
        ([[True, None], [False]], pa.bool_(), [1, np.nan, 0]),
        ([[None, None]], pa.float64(), [np.nan, np.nan]),
        ([], pa.float64(), []),
        ([[float("inf"), float("nan")]], pa.float64(), [np.inf, np.nan]),
    ],
)
def test_numbers_and_flags_are_floats_with_nan_for_null(
    pieces: list[list[object]], kind: pa.DataType, expected: list[float]
) -> None:
    column = pa.chunked_array(pieces, type=kind)
    assert floats_of(column).tolist() == pytest.approx(expected, nan_ok=True)
    assert floats_of(column).dtype == np.float64
    assert floats_of(column).flags.writeable


def test_steps_of_several_pieces_are_in_order() -> None:
    rows = pa.table({"step": pa.chunked_array([[1, 2], [3]], type=pa.int64())})
    assert steps_of(rows).tolist() == [1, 2, 3]
    assert steps_of(rows.slice(0, 0)).tolist() == []


def test_a_list_of_finished_runs_loads_no_pandas(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store = RunStore.create(tmp_path / name, {"arm": "one"})
        for step in range(1, 9):
            store.append("steps", {"step": step, "loss": 1 / step, "test_accuracy": 0.5 if step % 2 else None})
        store.close("finished", "done")
    script = (
        "import sys; from lossscope.cli.main import app\n"
        f"app(['runs', {str(tmp_path)!r}], standalone_mode=False)\n"
        "assert 'pandas' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "finished" in found.stdout
