from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lossscope.landscape.errors import RunError
from lossscope.landscape.run import Run, open_runs
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import TABLES, columns


def _finished(path: Path, steps=3) -> Path:
    store = RunStore.create(path, {})
    for step in range(steps):
        store.append("steps", {"step": step, "loss": 1.0 / (step + 1), "passes": 1, "synced": step == 1})
        store.append("spectra", {"step": step, "tensor": "w", "object": "update", "values": [2.0, float("nan")]})
    store.close("finished", "all steps done")
    return path


def test_every_table_has_every_column_with_the_same_type_empty_or_not(tmp_path):
    store = RunStore.create(tmp_path / "a", {})
    run = Run.open(store.path)
    empty = {table: getattr(run, table) for table in TABLES}
    full_row = {"int": 1, "float": 1.0, "bool": True, "text": "a", "floats": [1.0]}
    for table, found in TABLES.items():
        store.append(table, {column.name: full_row[column.type] for column in found})
        store.append(table, {column.name: full_row[column.type] for column in found if column.required})
    store.close("finished", "done")
    full = Run.open(store.path)
    for table in TABLES:
        before, after = empty[table], getattr(full, table)
        assert tuple(before.columns) == tuple(after.columns) == columns(table)
        assert (len(before), len(after)) == (0, 2)
        assert list(before.dtypes) == list(after.dtypes)


def test_a_missing_value_stays_missing_in_every_type(tmp_path):
    run = Run.open(_finished(tmp_path / "a"))
    assert run.steps["phi"].isna().all()
    assert run.steps["phi"].dtype == np.float64
    assert run.steps["passes"].dtype == pd.Int64Dtype()
    assert list(run.steps["synced"]) == [False, True, False]
    assert run.spectra["method"][0] is None
    np.testing.assert_array_equal(run.spectra["values"][2], [2.0, np.nan])
    assert run.steps is run.steps


@pytest.mark.parametrize(
    ("manifest", "unit"),
    [
        ({"loss_unit": "nats"}, "nats"),
        ({"loss_unit": None, "config": {"workload": "digits-mlp"}}, ""),
        ({"config": {"workload": "digits-mlp"}}, "nats"),
        ({"config": {"steps": 3}}, ""),
        ({}, ""),
    ],
)
def test_the_unit_of_the_loss_is_recorded_or_that_of_the_workload(tmp_path, manifest, unit):
    RunStore.create(tmp_path / "a", manifest).close("finished", "done")
    assert Run.open(tmp_path / "a").loss_unit == unit


def test_rows_are_ordered_by_step_and_ties_stay_as_written(tmp_path):
    store = RunStore.create(tmp_path / "a", {})
    for step, measure in [(2, "a"), (1, "c"), (2, "b"), (1, "a"), (2, "0")]:
        store.append("probes", {"step": step, "measure": measure})
        store.flush()
    live = list(Run.open(store.path).probes["measure"])
    store.close("finished", "done")
    assert live == list(Run.open(store.path).probes["measure"]) == ["c", "a", "a", "b", "0"]


def test_where_a_run_ends_is_a_sentence_for_each_status(tmp_path):
    store = RunStore.create(tmp_path / "a", {})
    assert Run.open(store.path).ends == "Still recording; flushed so far: no step."
    store.append("steps", {"step": 41})
    store.flush()
    live = Run.open(store.path)
    assert (live.status, live.ends) == ("running", "Still recording; flushed so far: up to step 41.")
    store._leave()
    crashed = Run.open(store.path)
    assert (crashed.status, crashed.name) == ("crashed", "a")
    assert crashed.ends == "The recording process died; the record ends after step 41."
    store = RunStore.resume(store.path, 41)
    store.close("failed", "the loss became nan")
    assert Run.open(store.path).ends == "Failed after step 41: the loss became nan."


def test_a_torn_segment_is_named_with_step_and_byte(tmp_path):
    store = RunStore.create(tmp_path / "a", {})
    for step in (811, 812, 813):
        store.append("steps", {"step": step})
        store.flush()
    store._leave()
    segment = store.path / "journal" / "steps-000001.arrows"
    content = segment.read_bytes()
    segment.write_bytes(content[:-10])
    run = Run.open(store.path)
    assert list(run.steps["step"]) == [811, 812]
    assert "after step 812. journal/steps-000001.arrows ends inside a record after step 812 (byte " in run.ends
    assert run.ends.endswith(f" of {len(content) - 10}).")


def test_a_corrupted_table_is_one_line_and_the_others_are_readable(tmp_path):
    run = Run.open(_finished(tmp_path / "a"))
    (run.path / "steps.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(RunError, match=r"^[^\n]*steps\.parquet cannot be read [^\n]* the other tables still read$"):
        _ = run.steps
    assert len(run.spectra) == 3
    assert "steps.parquet cannot be read" in Run.open(run.path).ends


def test_a_parquet_file_cut_anywhere_is_a_run_error(tmp_path):
    path = _finished(tmp_path / "a") / "spectra.parquet"
    content = path.read_bytes()
    for size in [*range(0, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(RunError, match=r"spectra\.parquet cannot be read"):
            _ = Run.open(tmp_path / "a").spectra


def test_a_flipped_byte_in_parquet_is_a_run_error_or_reads(tmp_path):
    code = (
        "import random, sys; from pathlib import Path\n"
        "from lossscope.landscape.errors import RunError\n"
        "from lossscope.landscape.run import Run\n"
        "path = Path(sys.argv[1]); file = path / 'spectra.parquet'\n"
        "content = file.read_bytes(); chance = random.Random(1); caught = 0\n"
        "for at in sorted(chance.sample(range(len(content)), 400)):\n"
        "    flipped = bytearray(content); flipped[at] ^= 1 << chance.randrange(8)\n"
        "    file.write_bytes(flipped)\n"
        "    try: Run.open(path).spectra\n"
        "    except RunError: caught += 1\n"
        "sys.stdout.write(str(caught))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(_finished(tmp_path / "a"))], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


def test_reading_leaves_the_folder_as_it_was(tmp_path):
    store = RunStore.create(tmp_path / "a", {})
    store.append("steps", {"step": 1})
    store.flush()
    store._leave()
    (store.path / ".lock").unlink()
    before = {one: one.stat().st_mtime_ns for one in [tmp_path, *tmp_path.rglob("*")]}
    run = Run.open(store.path)
    assert (run.status, len(run.steps), len(run.probes)) == ("crashed", 1, 0)
    assert run.ends
    assert {one: one.stat().st_mtime_ns for one in [tmp_path, *tmp_path.rglob("*")]} == before


def test_an_open_run_does_not_change_under_its_reader(tmp_path):
    store = RunStore.create(tmp_path / "a", {})
    for step in (1, 2):
        store.append("tensors", {"step": step, "tensor": "w", "track": "matrix"})
        store.append("steps", {"step": step})
        store.flush()
        if step == 1:
            run = Run.open(store.path)
    assert (list(run.steps["step"]), list(run.tensors["step"])) == ([1], [1])
    store.close("finished", "done")


def test_a_run_compacted_after_it_was_opened_still_reads(tmp_path):
    store = RunStore.create(tmp_path / "a", {})
    store.append("steps", {"step": 1})
    store.append("probes", {"step": 1, "measure": "trace"})
    store.flush()
    run = Run.open(store.path)
    store.close("finished", "done")
    assert (len(run.steps), len(run.probes)) == (1, 1)


def test_a_run_or_the_folder_of_runs_can_be_opened(tmp_path):
    for name in ("b", "a"):
        _finished(tmp_path / "runs" / name)
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "report.html").touch()
    shutil.copytree(tmp_path / "runs" / "a", tmp_path / "runs" / ".a.removed-1")
    assert [run.name for run in open_runs(tmp_path / "runs")] == ["a", "b"]
    assert [run.name for run in open_runs(tmp_path / "runs" / "b")] == ["b"]
    assert [run.name for run in open_runs(tmp_path)] == ["a", "b"]
    with pytest.raises(RunError, match=r"no run in .*empty: searched it and two levels of folders below"):
        open_runs(tmp_path / "runs" / "empty")
    with pytest.raises(RunError, match="does not exist"):
        open_runs(tmp_path / "absent")


def test_a_folder_that_cannot_be_listed_is_an_error_and_below_another_it_is_skipped(tmp_path, monkeypatch):
    _finished(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "locked").mkdir()
    list_folder = Path.iterdir

    def refuse_locked(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return list_folder(path)

    monkeypatch.setattr(Path, "iterdir", refuse_locked)
    assert [run.name for run in open_runs(tmp_path / "runs")] == ["a"]
    with pytest.raises(RunError, match=r"cannot list .*locked: Permission denied; check its permissions"):
        open_runs(tmp_path / "runs" / "locked")


def test_random_bytes_in_the_journal_are_a_run_error_or_a_prefix(tmp_path):
    chance = random.Random(2)
    store = RunStore.create(tmp_path / "a", {})
    store.append("steps", {"step": 1})
    store.flush()
    store._leave()
    segment = store.path / "journal" / "steps-000001.arrows"
    for _ in range(50):
        segment.write_bytes(chance.randbytes(chance.randrange(1, 300)))
        with pytest.raises(RunError, match="is corrupted from byte 0"):
            _ = Run.open(store.path).steps


def test_reading_a_run_imports_no_torch(tmp_path):
    code = (
        "import sys; from lossscope.landscape.run import Run\n"
        "assert 'pandas' not in sys.modules\n"
        "run = Run.open(sys.argv[1]); run.steps; run.spectra; run.ends\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(_finished(tmp_path / "a"))], check=True, timeout=60)
