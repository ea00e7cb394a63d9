"""Extension of a run that has ended."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from lossscope.landscape.errors import RunError, SchemaError
from lossscope.landscape.run import Run
from lossscope.landscape.storage import row_codec as row_module
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import SCHEMA_VERSION, TABLES

COST = {"products", "seconds", "gradients", "method", "engine"}
NEW = {
    "probes": {"gradients", "method"},
    "densities": {"settled", "size", "mode", "loss_kind", "seed", "data_hash"} | COST,
}


def added(path, step, value):
    store = RunStore.extend(path, {"code_version": "test"})
    store.append("probes", {"step": step, "measure": "lambda_max", "value": value})
    store.flush()
    return store


@pytest.mark.parametrize("status", ["finished", "failed", "crashed"])
def test_rows_are_added_and_how_the_run_ended_stays(tmp_path, small, status):
    store = small.store(tmp_path / "a")
    small.crash(store) if status == "crashed" else store.close(status, "the end")
    before = Run.open(store.path)
    extension = added(store.path, 2, 7.0)
    during = Run.open(store.path)
    extension.leave()
    extension.leave()
    after = Run.open(store.path)
    for run in (during, after):
        assert (run.status, run.ends) == (status, before.ends)
        assert list(zip(run.probes["step"], run.probes["measure"], run.probes["value"], strict=True)) == [
            (1, "trace", 0.0),
            (2, "trace", 0.0),
            (2, "lambda_max", 7.0),
            (3, "trace", 0.0),
        ]
    kept = ("status", "how_it_ended", "ended", "created", "arm")
    assert {key: after.manifest[key] for key in kept} == {key: before.manifest[key] for key in kept}
    assert after.manifest["sessions"][-1].items() >= {"session": 2, "resumed_at": None, "code_version": "test"}.items()
    assert not (store.path / "journal").exists()


def test_a_live_run_cannot_be_extended(tmp_path, small):
    store = small.store(tmp_path / "a")
    with pytest.raises(RunError, match="is being recorded by this process: close that recorder first"):
        RunStore.extend(store.path, {})
    store.close("finished", "done")


def test_an_extension_that_is_killed_keeps_what_it_flushed_and_the_run_its_end(tmp_path, small):
    store = small.store(tmp_path / "a")
    store.close("finished", "done")
    small.crash(added(store.path, 3, 7.0))
    run = Run.open(store.path)
    assert run.status == "finished"
    assert run.probes["value"].tolist() == [0.0, 0.0, 0.0, 7.0]
    added(store.path, 3, 8.0).leave()
    assert Run.open(store.path).probes["value"].tolist() == [0.0, 0.0, 0.0, 7.0, 8.0]


def test_rows_measured_beyond_the_step_of_a_resumption_are_superseded(tmp_path, small):
    store = small.store(tmp_path / "a")
    small.crash(store)
    added(store.path, 2, 5.0).leave()
    added(store.path, 3, 7.0).leave()
    resumed = RunStore.resume(store.path, 2)
    small.fill(resumed, [3], loss=1.0)
    assert Run.open(store.path).status == "running"
    resumed.close("finished", "done")
    run = Run.open(store.path)
    assert list(zip(run.probes["step"], run.probes["value"], strict=True)) == [(1, 0.0), (2, 0.0), (2, 5.0), (3, 1.0)]


def test_a_corrupted_journal_is_an_error_before_anything_is_written(tmp_path, small):
    store = small.store(tmp_path / "a")
    small.crash(store)
    segment = next((store.path / "journal").glob("steps-*"))
    segment.write_bytes(segment.read_bytes()[:-20] + b"x" * 20)
    before = (store.path / "run.json").read_bytes()
    with pytest.raises(RunError, match=r"is corrupted from byte .* move it out of journal/"):
        RunStore.extend(store.path, {})
    assert (store.path / "run.json").read_bytes() == before


def test_a_row_never_stands_without_the_density_that_was_measured_with_it(tmp_path, small, monkeypatch):
    store = small.store(tmp_path / "a")
    store.close("finished", "done")
    extension = RunStore.extend(store.path, {})
    extension.append("probes", {"step": 3, "measure": "effective_rank", "value": 2.0})
    extension.append("densities", {"step": 3, "probe": 0, "nodes": [1.0], "weights": [1.0]})
    write, written = extension._journal._write, []

    def first_alone(table):
        if not written:
            write(table)
        written.append(table)

    monkeypatch.setattr(extension._journal, "_write", first_alone)
    extension._journal.flush()
    extension._journal._pending["probes"].clear()  # killed after the first record
    small.crash(extension)
    run = Run.open(store.path)
    assert (len(run.densities), len(run.probes)) == (1, 3)


@pytest.mark.parametrize("compacted", [True, False])
def test_a_run_of_the_first_version_reads_and_takes_rows(tmp_path, small, monkeypatch, compacted):
    with monkeypatch.context() as old:
        for table, names in NEW.items():
            columns = tuple(column for column in TABLES[table] if column.name not in names)
            old.setitem(TABLES, table, columns)
            places = {column.name: (place, column) for place, column in enumerate(columns)}
            old.setitem(row_module._COLUMNS, table, places)
            old.setitem(row_module._REQUIRED, table, [one for one in places.values() if one[1].required])
        store = small.store(tmp_path / "a")
        store.append("densities", {"step": 3, "probe": 0, "nodes": [1.0], "weights": [1.0]})
        store.flush()
        store.close("finished", "done") if compacted else small.crash(store)
        manifest = json.loads((store.path / "run.json").read_text())
        (store.path / "run.json").write_text(json.dumps({**manifest, "schema_version": 1}))
    if compacted:
        assert "gradients" not in pq.read_schema(store.path / "probes.parquet").names
    run = Run.open(store.path)
    assert run.probes["value"].tolist() == [0.0, 0.0, 0.0]
    assert run.probes["gradients"].isna().all()
    assert run.probes["method"].isna().all()
    assert run.densities["size"].isna().all()
    extension = RunStore.extend(store.path, {})
    extension.append("probes", {"step": 3, "measure": "trace", "value": 9.0, "gradients": 2.5, "method": "reverse"})
    extension.leave()
    after = Run.open(store.path)
    assert after.manifest["schema_version"] == SCHEMA_VERSION
    assert after.probes["gradients"].tolist()[-1] == 2.5
    assert after.probes["value"].tolist() == [0.0, 0.0, 0.0, 9.0]


def test_a_run_of_a_newer_schema_is_not_extended(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(SchemaError, match="pip install -U lossscope"):
        RunStore.extend(tmp_path, {})
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("crashed", [True, False])
def test_an_extension_without_a_row_leaves_the_run_byte_for_byte(tmp_path, small, crashed):
    store = small.store(tmp_path / "a")
    small.crash(store) if crashed else store.close("finished", "done")
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    extension = RunStore.extend(store.path, {"code_version": "test"})
    with pytest.raises(RunError, match="is being recorded"):  # the extension holds the lock even without rows
        RunStore.extend(store.path, {})
    extension.leave()
    assert {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()} == before
    added(store.path, 3, 1.0).leave()
    assert [one["session"] for one in Run.open(store.path).manifest["sessions"]] == [1, 2]
