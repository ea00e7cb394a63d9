"""A full disk: nothing that was promised is lost, and `close` can be called again."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lossscope.landscape.errors import RunError
from lossscope.landscape.run import Run
from lossscope.landscape.storage import (
    compaction as compaction_module,
    journal as journal_module,
    run_folder as run_folder_module,
)
from lossscope.landscape.storage.run_store import RunStore


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a switch: while `full`, no file is written to its end."""
    state = SimpleNamespace(full=False, journal_only=False)
    write, sync = journal_module._SegmentWriter.write, os.fsync

    def written(self: journal_module._SegmentWriter, batch: object) -> None:
        if state.full:
            self._file.write(b"\xff\xff\xff\xff part of a record")
            raise OSError(28, "No space left on device")
        write(self, batch)  # type: ignore[arg-type]

    def synced(descriptor: int) -> None:
        if state.full and not state.journal_only:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(journal_module._SegmentWriter, "write", written)
    monkeypatch.setattr(os, "fsync", synced)
    return state


def test_rows_stay_until_there_is_space_and_no_empty_segment_stays(
    tmp_path: Path, small: SimpleNamespace, disk: SimpleNamespace
):
    store = small.store(tmp_path / "a")
    disk.full = True
    for step in range(4, 40):
        store.append("steps", {"step": step, "loss": 0.0})
        with pytest.raises(RunError, match="No space left on device; free some space, no row is lost yet"):
            store.flush()
    assert len(list((store.path / "journal").iterdir())) == 2
    assert list(Run.open(store.path).steps["step"]) == [1, 2, 3]
    disk.full = False
    store.close("finished", "done")
    run = Run.open(store.path)
    assert (run.status, list(run.steps["step"])) == ("finished", list(range(1, 40)))


def test_close_can_be_called_again(tmp_path: Path, small: SimpleNamespace, disk: SimpleNamespace):
    store = small.store(tmp_path / "a")
    store.append("steps", {"step": 4, "loss": 0.0})
    disk.full = True
    for _ in range(2):
        with pytest.raises(RunError, match="No space left on device"):
            store.close("finished", "done")
        assert not store.closed
    assert Run.open(store.path).status == "running"
    disk.full = False
    store.close("finished", "done")
    run = Run.open(store.path)
    assert (run.status, len(run.steps), run.manifest["how_it_ended"]) == ("finished", 4, "done")


class _FullFile(io.FileIO):
    """A file of a full disk."""

    def write(self, data: object) -> int:
        raise OSError(28, "No space left on device")


def test_a_run_on_a_full_disk_is_not_opened_to_be_measured(
    tmp_path: Path, small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    store = small.store(tmp_path / "a")
    store.close("finished", "done")
    with monkeypatch.context() as patched:
        patched.setattr(run_folder_module, "open_writable", lambda path: io.BufferedRandom(_FullFile(path, "r+b")))
        with pytest.raises(RunError, match=r"cannot write into .*/a: No space left on device; free some space"):
            RunStore.extend(store.path, {})
    RunStore.extend(store.path, {}).leave()


def test_an_end_without_its_last_rows_is_failed_until_close_succeeds(
    tmp_path: Path, small: SimpleNamespace, disk: SimpleNamespace
):
    store = small.store(tmp_path / "a")
    store.append("steps", {"step": 4, "loss": 0.0})
    disk.full = disk.journal_only = True
    with pytest.raises(RunError, match="No space left on device"):
        store.close("finished", "done")
    run = Run.open(store.path)
    assert (run.status, len(run.steps)) == ("failed", 3)
    assert "No space left" in run.ends
    disk.full = False
    del store
    assert len(Run.open(tmp_path / "a").steps) == 4  # flushed when the store was dropped


def test_rows_appended_between_two_closes_are_not_taken_for_compacted_ones(
    tmp_path: Path, small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    store = small.store(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr("lossscope.landscape.storage.run_store.write_manifest", _raise_full)
        with pytest.raises(RunError, match="full"):
            store.close("finished", "done")
    assert (store.path / "steps.parquet").exists()
    small.fill(store, [4])
    assert len(Run.open(store.path).steps) == 4
    store.close("finished", "done")
    assert len(Run.open(store.path).steps) == 4


def _raise_full(*_: object) -> None:
    raise RunError("full")


def test_close_flushes_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = RunStore.create(tmp_path / "a", {})
    for step in range(150):
        store.append("steps", {"step": step})
    seen: list[int] = []

    def compacted(folder: Path, run: str | None) -> None:
        seen.append(len(Run.open(folder).steps))
        compaction_module.compact(folder, run)

    monkeypatch.setattr("lossscope.landscape.storage.run_store.compact", compacted)
    store.close("finished", "done")
    assert seen == [150]


def test_a_run_shorter_than_a_flush_that_is_killed_inside_close_keeps_its_rows(tmp_path: Path):
    code = (
        "import os, signal, sys\n"
        "from lossscope.landscape.storage import run_store\n"
        "store = run_store.RunStore.create(sys.argv[1], {})\n"
        "for step in range(150): store.append('steps', {'step': step})\n"
        "run_store.compact = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.close('finished', 'done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    run = Run.open(tmp_path / "a")
    assert (run.status, len(run.steps)) == ("crashed", 150)


def test_what_killed_processes_left_is_removed_at_the_next_close(tmp_path: Path, small: SimpleNamespace):
    store = small.store(tmp_path / "a")
    left = store.path / "checkpoints" / ".step-000000003.17"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    for name in (".run.json.tmp-17", ".steps.parquet.tmp-17"):
        (store.path / name).write_bytes(b"half")
    store.close("finished", "done")
    inside = sorted(one.name for one in store.path.rglob("*"))
    assert inside == [".lock", "checkpoints", "probes.parquet", "run.json", "steps.parquet"]
