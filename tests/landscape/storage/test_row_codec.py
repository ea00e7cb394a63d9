from __future__ import annotations

import math

import numpy as np
import pytest

from lossscope.landscape.storage.row_codec import cells, record_batch


def test_nan_is_missing_and_infinity_is_a_number():
    row = {
        "step": np.int32(1),
        "loss": np.float32("nan"),
        "phi": math.inf,
        "passes": math.nan,
        "synced": np.bool_(True),
    }
    stored = record_batch("steps", [cells("steps", row)]).to_pylist()[0]
    assert [stored[name] for name in row] == [1, None, math.inf, None, True]


def test_a_list_is_copied_and_its_nan_is_null():
    values = np.array([1.0, np.nan], dtype=np.float32)
    taken = cells("densities", {"step": 1, "probe": 0, "nodes": values, "weights": [None, 2]})
    values[0] = 9.0
    row = record_batch("densities", [taken]).to_pylist()[0]
    assert (row["nodes"], row["weights"]) == ([1.0, None], [None, 2.0])


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("nothing", {"step": 1}, "unknown table 'nothing': use one of steps"),
        ("steps", {"step": 1, "lost": 1}, "table steps has no column 'lost'"),
        ("steps", {"loss": 1.0}, "column 'step' of table steps is required"),
        ("steps", {"step": None}, "column 'step' of table steps is required"),
        ("steps", {"step": 1.0}, "column 'step' of table steps holds int"),
        ("steps", {"step": True}, "column 'step' of table steps holds int"),
        ("steps", {"step": 2**63}, "column 'step' of table steps holds int"),
        ("steps", {"step": 1, "loss": "0.5"}, "column 'loss' of table steps holds float"),
        ("steps", {"step": 1, "loss": True}, "column 'loss' of table steps holds float"),
        ("steps", {"step": 1, "loss": 10**400}, "column 'loss' of table steps holds float"),
        ("steps", {"step": 1, "synced": 1}, "column 'synced' of table steps holds bool"),
        ("probes", {"step": 1, "measure": b"trace"}, "column 'measure' of table probes holds text"),
        ("probes", {"step": 1, "measure": "\ud800"}, "column 'measure' of table probes holds text"),
        (
            "densities",
            {"step": 1, "probe": 0, "nodes": 1.0, "weights": []},
            "column 'nodes' of table densities holds floats",
        ),
        ("densities", {"step": 1, "probe": 0, "nodes": ["1"], "weights": []}, "column 'nodes' of table densities"),
        ("densities", {"step": 1, "probe": 0, "nodes": [[1.0]], "weights": []}, "column 'nodes' of table densities"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_table_and_column(table, row, message):
    with pytest.raises(ValueError, match=message):
        cells(table, row)
