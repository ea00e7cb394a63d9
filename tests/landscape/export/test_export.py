"""Exported tables: every number comes back, gaps are gaps, nothing is overwritten or half written."""

from __future__ import annotations

import json
import math
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.export.history import history, steps_of
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
    assert lines[0] == {"_step": 1, "loss": 0.1, "synced": False}
    assert lines[1]["curvature/lambda_max"] == 5.0
    assert lines[1]["curvature/lambda_max/low"] == 4.0
    assert "curvature/trace" not in lines[1]
    assert lines[1]['tensors/a"b,c\n/gradient_norm'] == 3.0


def test_a_history_has_the_times_of_weights_and_biases(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "timed", {"arm": "one"})
    store.append("steps", {"step": 1, "loss": 1.0, "seconds": 2.5})
    store.append("probes", {"step": 3, "measure": "trace", "value": 1.0})
    store.close("finished", "done")
    run = Run.open(tmp_path / "timed")
    first, second = map(json.loads, history(run))
    begun = datetime.fromisoformat(run.manifest["created"]).timestamp()
    assert list(first)[:3] == ["_step", "_runtime", "_timestamp"]
    assert (first["_runtime"], first["_timestamp"]) == (2.5, begun + 2.5)
    assert second == {"_step": 3, "curvature/trace": 1.0}
    run.manifest["created"] = "long ago"
    assert "_timestamp" not in json.loads(next(history(run)))


def test_steps_of_several_tables_are_joined_in_order(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "mixed", {"arm": "one"})
    for step in (3, 1, 2):
        store.append("tensors", {"step": step, "tensor": "w", "track": "matrix", "energy": float(step)})
    for step in (1, 3):
        store.append("steps", {"step": step, "loss": float(step)})
    for step in (0, 2):
        store.append("probes", {"step": step, "measure": "loss", "value": float(step)})
    store.close("finished", "done")
    found = dict(steps_of(Run.open(tmp_path / "mixed")))
    assert list(found) == [0, 1, 2, 3]
    assert [found[step].get("tensors/w/energy") for step in found] == [None, 1.0, 2.0, 3.0]
    assert [found[step].get("loss") for step in found] == [None, 1.0, None, 3.0]
    assert [found[step].get("curvature/loss") for step in found] == [0.0, None, 2.0, None]


def test_tensorboard_reads_every_number(runs: list[Run], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    files = export(runs, tmp_path / "out", "tensorboard")
    assert [path.parent.name for path in files] == ["x", "y"]
    for run, path in zip(runs, files, strict=True):
        found = accumulator.EventAccumulator(str(path.parent), size_guidance={"scalars": 0})
        found.Reload()
        expected: dict[str, list[tuple[int, float]]] = {}
        for step, numbers in steps_of(run):
            for name, value in numbers.items():
                if not isinstance(value, str):
                    expected.setdefault(name, []).append((step, float(np.float32(value))))
        assert set(found.Tags()["scalars"]) == set(expected)
        assert 'tensors/a"b,c\n/gradient_norm' in expected
        for name, values in expected.items():
            scalars = found.Scalars(name)
            assert [(one.step, one.value) for one in scalars] == values
            assert {one.wall_time for one in scalars} == {datetime.fromisoformat(run.manifest["created"]).timestamp()}


def test_an_event_file_is_the_same_at_every_export_and_replaced_only_by_force(runs: list[Run], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (first, _) = export(runs, tmp_path / "out", "tensorboard")
    content = first.read_bytes()
    with pytest.raises(LandscapeError, match="add --force"):
        export(runs, tmp_path / "out", "tensorboard")
    assert export(runs, tmp_path / "out", "tensorboard", force=True)[0].read_bytes() == content
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_a_number_beyond_float32_is_left_out_of_an_event_file(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    store = RunStore.create(tmp_path / "huge", {"arm": "one"})
    for step, loss in enumerate((1.0, 1e300, -1e39, 3.4e38), start=1):
        store.append("steps", {"step": step, "loss": loss, "seconds": 1.0})
    store.close("finished", "done")
    (path,) = export([Run.open(tmp_path / "huge")], tmp_path / "out", "tensorboard")
    found = accumulator.EventAccumulator(str(path.parent), size_guidance={"scalars": 0})
    found.Reload()
    assert [one.step for one in found.Scalars("loss")] == [1, 4]


def test_without_tensorboard_one_line_says_what_to_install(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(LandscapeError, match=r"pip install 'lossscope\[tensorboard\]'"):
        export(runs, tmp_path / "out", "tensorboard")
    assert list((tmp_path / "out").iterdir()) == []


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
