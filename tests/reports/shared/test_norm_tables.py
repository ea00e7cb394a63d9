"""Norm controls: values at the end of each run, and missing values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import dynamics, flatness, overview, sharpness, spectral_entropy
from lossscope.reports.content import Quantity, Report
from lossscope.reports.shared.norm_tables import norm_table, tensor_norm_table


def run(path: Path, weight: float, *, bare: bool = False) -> Run:
    tensors = [{"name": "a", "shape": [4, 25]}, {"name": "b", "shape": [4]}]
    store = RunStore.create(path, {"arm": "one", "seeds": {"init": int(weight)}, "model": {"tensors": tensors}})
    for step in (1, 2):
        row = {"step": step, "lr": 0.1, "weight_norm": weight * step, "update_norm": 0.5}
        store.append("steps", {"step": step} if bare else {**row, "weight_decay": 0.01})
        if not bare:
            norms = {"track": "matrix", "weight_norm": 3.0 * step, "update_norm": 2.0, "update_ratio": 2 / (3 * step)}
            store.append("tensors", {"step": step, "tensor": "a", **norms})
    if not bare:
        store.append("tensors", {"step": 1, "tensor": "b", "track": "vector", "weight_norm": 0.0, "update_norm": 1.0})
        for part, top in enumerate((2.5, 1.5)):
            store.append("spectra", {"step": 2, "tensor": "a", "slice": part, "object": "weight", "values": [top, 1.0]})
        for measure, value in (("loss", 0.2), ("logit_norm", 7.0), ("mean_margin", weight)):
            store.append("probes", {"step": 2, "measure": measure, "value": value})
    store.close("finished", "done")
    return Run.open(path)


def test_each_arm_has_the_controls_of_its_end_with_their_range_over_seeds(tmp_path: Path) -> None:
    (table,) = norm_table([run(tmp_path / "a", 3.0), run(tmp_path / "b", 5.0)])
    (row,) = table.rows
    cells = dict(zip([column.key for column in table.columns], row, strict=True))
    assert cells["arm"] == "one"
    assert cells["weight_norm"] == Quantity(8.0, low=6.0, high=10.0)
    assert cells["decay"].value == pytest.approx(0.001)
    assert cells["logit_norm"].value == 7
    assert (cells["mean_margin"].low, cells["mean_margin"].high) == (3, 5)
    assert cells["loss"].value == 0.2


def test_each_tensor_has_its_norms_and_what_a_vector_lacks_is_a_gap(tmp_path: Path) -> None:
    (table,) = tensor_norm_table([run(tmp_path / "a", 3.0)])
    rows = {row[0]: dict(zip([column.key for column in table.columns], row, strict=True)) for row in table.rows}
    a, b = rows["a"], rows["b"]
    assert (a["weight_norm"].value, a["spectral_norm"].value, a["update_norm"].value) == (6, 2.5, 2)
    assert a["update_rms"].value == pytest.approx(2 / math.sqrt(100))
    assert a["update_ratio"].value == pytest.approx(1 / 3)
    assert b["spectral_norm"].value is None
    assert b["update_ratio"].value is None
    assert b["update_rms"].value == pytest.approx(0.5)


def test_a_run_without_norms_has_no_table_and_beside_others_it_is_a_gap(tmp_path: Path) -> None:
    bare = run(tmp_path / "bare", 1.0, bare=True)
    assert norm_table([bare]) == ()
    assert tensor_norm_table([bare]) == ()
    (table,) = norm_table([bare, run(tmp_path / "full", 3.0)])
    assert table.rows[0][2] == Quantity(6.0, low=6.0, high=6.0, missing=1)


@pytest.mark.parametrize("report", [dynamics, flatness, overview, sharpness, spectral_entropy])
def test_every_report_has_the_norm_controls(report: Callable[[list[Run]], Report], tmp_path: Path) -> None:
    (table,) = [table for table in report([run(tmp_path / "a", 3.0)]).tables if table.key == "norms"]
    assert table.rows[0][2] == Quantity(6.0, low=6.0, high=6.0)
