from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from filelock import lock_descriptor, unlock_descriptor

from lossscope.landscape.errors import RunError, SchemaError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_folder import RunLock, is_recorded
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import SCHEMA_VERSION


def test_closing_moves_all_rows_into_parquet(tmp_path, small):
    store = small.store(tmp_path / "a")
    before = small.recorded(store.path)
    store.close("finished", "done")
    assert small.recorded(store.path) == before
    assert before["steps"] == before["probes"] == [(1, 0.0), (2, 0.0), (3, 0.0)]
    inside = sorted(path.name for path in store.path.iterdir())
    assert inside == [".lock", "probes.parquet", "run.json", "steps.parquet"]
    assert Run.open(store.path).manifest["how_it_ended"] == "done"


def test_a_closed_store_takes_nothing_more_and_closing_again_changes_nothing(tmp_path, small):
    store = small.store(tmp_path / "a")
    store.close("failed", "the loss is nan")
    store.close("finished", "no")
    assert Run.open(store.path).status == "failed"
    with pytest.raises(ValueError, match="is closed: resume it to append rows"):
        store.append("steps", {"step": 9})
    with pytest.raises(ValueError, match="is closed"):
        store.update_manifest(x=1)


def test_an_end_that_is_neither_finished_nor_failed_is_refused(tmp_path):
    store = RunStore.create(tmp_path / "a", {})
    with pytest.raises(ValueError, match=r"status must be one of .*, got 'done'"):
        store.close("done", "")
    store.close("finished", "")


def test_the_callers_facts_are_kept_and_the_stores_own_are_not_overwritten(tmp_path):
    store = RunStore.create(tmp_path / "a", {"arm": "sgd", "status": "finished", "schema_version": 99})
    store.update_manifest(steps=7)
    manifest = Run.open(store.path).manifest
    assert (manifest["arm"], manifest["status"], manifest["schema_version"], manifest["steps"]) == (
        "sgd",
        "running",
        SCHEMA_VERSION,
        7,
    )
    store.close("finished", "done")


def test_rows_that_cannot_be_written_at_the_end_make_the_run_failed(tmp_path, monkeypatch, small):
    store = small.store(tmp_path / "a")
    store.append("steps", {"step": 4})

    def full(_):
        raise RunError("cannot write: No space left on device")

    monkeypatch.setattr(store._journal, "_write", full)
    with pytest.raises(RunError, match="No space left"):
        store.close("finished", "done")
    run = Run.open(store.path)
    assert (run.status, len(run.steps)) == ("failed", 3)


def test_an_existing_run_is_refused_with_both_ways_out(tmp_path, small):
    small.store(tmp_path / "a").close("finished", "done")
    with pytest.raises(RunError, match=r"already holds a run: use --resume to continue it, --force to replace it"):
        RunStore.create(tmp_path / "a", {})
    assert len(small.recorded(tmp_path / "a")["steps"]) == 3


def test_force_replaces_a_run_and_leaves_nothing_of_it(tmp_path, small):
    small.store(tmp_path / "a").close("finished", "done")
    store = RunStore.create(tmp_path / "a", {}, force=True)
    assert len(Run.open(store.path).steps) == 0
    store.close("finished", "done")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_force_never_removes_what_is_not_a_run(tmp_path):
    thesis = tmp_path / "a" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(RunError, match="holds files but no run, so nothing was changed"):
        RunStore.create(thesis.parent, {}, force=True)
    assert [one.name for one in thesis.parent.iterdir()] == ["thesis.txt"]


def test_force_never_follows_a_link(tmp_path, small):
    small.store(tmp_path / "a").close("finished", "done")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(RunError, match="is a link or a file"):
        RunStore.create(tmp_path / "link", {}, force=True)
    assert len(small.recorded(tmp_path / "a")["steps"]) == 3


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / "a").mkdir()
    RunStore.create(tmp_path / "a", {}).close("finished", "done")
    assert Run.open(tmp_path / "a").status == "finished"


def test_a_run_that_another_process_records_is_neither_resumed_nor_replaced(tmp_path, small):
    small.crash(small.store(tmp_path / "a"))
    with (tmp_path / "a" / ".lock").open("r+b") as file:
        assert lock_descriptor(file.fileno(), blocking=False)
        assert Run.open(tmp_path / "a").status == "running"
        with pytest.raises(RunError, match="is being recorded by another process"):
            RunStore.resume(tmp_path / "a", 1)
        with pytest.raises(RunError, match="is being recorded by another process"):
            RunStore.create(tmp_path / "a", {}, force=True)
    assert len(small.recorded(tmp_path / "a")["steps"]) == 3


def test_a_reader_that_asks_for_the_lock_does_not_keep_a_recorder_out(tmp_path, small):
    store = small.store(tmp_path / "a")
    small.crash(store)
    with (store.path / ".lock").open("rb") as file:
        assert lock_descriptor(file.fileno(), blocking=False)
        timer = threading.Timer(0.1, unlock_descriptor, (file.fileno(),))
        timer.start()
        lock = RunLock(store.path)
        timer.join()
    assert is_recorded(store.path)
    lock.release()
    assert not is_recorded(store.path)


def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_run_locked(tmp_path, small):
    store = small.store(tmp_path / "a")
    out, into = os.pipe()
    born, alive = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(into)
        os.write(alive, b"!")
        os.read(out, 1)  # until the parent releases the lock
        os._exit(0)
    os.read(born, 1)
    small.crash(store)
    status = Run.open(store.path).status
    RunLock(store.path).release()
    os.close(into)
    os.waitpid(child, 0)
    for descriptor in (out, born, alive):
        os.close(descriptor)
    assert status == "crashed"


def test_a_bad_manifest_touches_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.x has type object"):
        RunStore.create(tmp_path / "a", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot .*Not a directory; choose another folder"):
        RunStore.create(tmp_path / "file" / "a", {})


@pytest.mark.parametrize("name", [".hidden", "two\nlines", "n" * 101])
def test_a_bad_name_makes_no_folder(tmp_path, name):
    with pytest.raises(RunError, match="the run name"):
        RunStore.create(tmp_path / name, {})
    assert list(tmp_path.iterdir()) == []


def test_resuming_what_is_not_there_or_from_the_future_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        RunStore.resume(tmp_path / "a", 1)
    (tmp_path / "run.json").write_text('{"schema_version": 99}')
    with pytest.raises(SchemaError, match="pip install -U lossscope"):
        RunStore.resume(tmp_path, 1)
    with pytest.raises(ValueError, match="cannot be resumed at step -1"):
        RunStore.resume(tmp_path, -1)
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"]


def test_a_process_that_ends_without_closing_still_flushes(tmp_path):
    code = (
        "import sys; from lossscope.landscape.storage.run_store import RunStore\n"
        "store = RunStore.create(sys.argv[1], {})\n"
        "for step in range(5): store.append('steps', {'step': step}); store.flush_due() and store.flush()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True, timeout=60)
    run = Run.open(tmp_path / "a")
    assert (run.status, len(run.steps)) == ("crashed", 5)
