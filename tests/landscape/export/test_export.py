"""Exported tables: every number comes back, gaps are gaps, nothing is overwritten or half written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.export.history import history
from lossscope.landscape.export.tables import export
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore


def written(path: Path, arm: str = "one", seed: int = 0) -> Run:
    store = RunStore.create(path, {"arm": arm, "seeds": {"init": seed}})
    for step in (1, 2):
        store.append("steps", {"step": step, "loss": 0.1 + seed, "synced": step == 2, "phi": None})
    store.append("tensors", {"step": 2, "tensor": 'a"b,c\n', "track": "matrix", "gradient_norm": 3.0})
    store.append("spectra", {"step": 2, "tensor": "a", "object": "weight", "values": [2.0, 1.0]})
    for measure, value in (("lambda_max", 5.0), ("trace", math.inf)):
        store.append("probes", {"step": 2, "measure": measure, "value": value, "low": 4.0, "high": 6.0})
    store.close("finished", "done")
    return Run.open(path)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [written(tmp_path / "x", "one"), written(tmp_path / "y", "two", 1)]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_every_row_of_every_table_comes_back(format: str, runs: list[Run], tmp_path: Path) -> None:
    files = export(runs, tmp_path / "out", format)
    assert {path.name for path in files} == {f"{name}.{format}" for name in ("steps", "tensors", "spectra", "probes")}
    for path in files:
        back = pd.read_csv(path) if format == "csv" else pd.read_parquet(path)
        assert list(back.columns[:2]) == ["run", "arm"]
        assert sorted(set(zip(back["run"], back["arm"], strict=True))) == [("x", "one"), ("y", "two")]
        whole = [getattr(run, path.stem) for run in runs]
        assert len(back) == sum(map(len, whole))
        for column in ("step", "loss", "gradient_norm", "value"):
            if column in back:
                expected = pd.concat(whole)[column].to_numpy(dtype=float, na_value=np.nan)
                np.testing.assert_array_equal(back[column].to_numpy(dtype=float, na_value=np.nan), expected)
        if "tensor" in back and path.stem == "tensors":
            assert set(back["tensor"]) == {'a"b,c\n'}
    spectra = next(path for path in files if path.stem == "spectra")
    back = pd.read_csv(spectra) if format == "csv" else pd.read_parquet(spectra)
    first = json.loads(back["values"][0]) if format == "csv" else list(back["values"][0])
    assert first == [2.0, 1.0]


def test_a_history_has_a_line_for_each_step_without_gaps_and_infinities(runs: list[Run], tmp_path: Path) -> None:
    (first, _) = export(runs, tmp_path / "out", "jsonl")
    lines = [json.loads(line, parse_constant=pytest.fail) for line in first.read_text().splitlines()]
    assert [line["_step"] for line in lines] == [1, 2]
    assert lines[0] == {"_step": 1, "seconds": lines[0].get("seconds"), "loss": 0.1, "synced": False} or lines[0] == {
        "_step": 1,
        "loss": 0.1,
        "synced": False,
    }
    assert lines[1]["curvature/lambda_max"] == 5.0
    assert lines[1]["curvature/lambda_max/low"] == 4.0
    assert "curvature/trace" not in lines[1]
    assert lines[1]['tensors/a"b,c\n/gradient_norm'] == 3.0


def test_equal_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    runs = [written(tmp_path / "a" / "same"), written(tmp_path / "b" / "same", seed=1)]
    files = export(runs, tmp_path / "out", "jsonl")
    assert [path.name for path in files] == ["same.jsonl", "same-2.jsonl"]
    assert files[0].read_text() != files[1].read_text()


def test_files_are_replaced_only_by_force(runs: list[Run], tmp_path: Path) -> None:
    export(runs, tmp_path / "out", "csv")
    (tmp_path / "out" / "probes.csv").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(LandscapeError, match=r"steps\.csv exists; add --force"):
        export(runs[:1], tmp_path / "out", "csv")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert len(export(runs[:1], tmp_path / "out", "csv", force=True)) == 4


def test_what_cannot_be_written_is_one_line(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(LandscapeError, match="no runs to export"):
        export([], tmp_path / "out", "csv")
    with pytest.raises(LandscapeError, match="choose another folder"):
        export(runs, tmp_path / "not" / "there", "csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(LandscapeError, match="choose another folder"):
        export(runs, tmp_path / "file", "csv")


def test_an_empty_run_has_no_lines(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "e", {"arm": "one", "seeds": {"init": 0}})
    store.close("finished", "done")
    assert list(history(Run.open(tmp_path / "e"))) == []
