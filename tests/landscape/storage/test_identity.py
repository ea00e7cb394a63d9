"""A recorder writes into its own folder only, and every file of a run belongs to it."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lossscope.landscape.errors import RunError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.journal import segment_paths
from lossscope.landscape.storage.manifest import read_manifest
from lossscope.landscape.storage.run_store import RunStore


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def _removed(path: Path) -> None:
    shutil.rmtree(path)


def _renamed(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def _replaced(path: Path) -> None:
    shutil.rmtree(path)
    other = RunStore.create(path, {"arm": "other"})
    other.append("steps", {"step": 7, "loss": 7.0})
    other.close("finished", "done")


@pytest.mark.parametrize("happens", [_removed, _renamed, _replaced])
@pytest.mark.parametrize("use", ["flush", "update_manifest", "close", "drop"])
def test_a_recorder_whose_folder_is_gone_fails_clearly_and_writes_nowhere(
    tmp_path: Path, small: SimpleNamespace, happens: Callable[[Path], None], use: str
):
    store = small.store(tmp_path / "a")
    happens(store.path)
    before = _contents(tmp_path)
    store.append("steps", {"step": 4, "loss": 1.0})
    uses = {
        "flush": store.flush,
        "update_manifest": lambda: store.update_manifest(x=1),
        "close": lambda: store.close("finished", "done"),
    }
    if use == "drop":
        del store, uses
        gc.collect()
    else:
        with pytest.raises(RunError, match="is no longer the folder of this recording: it was removed, renamed or"):
            uses[use]()
    assert _contents(tmp_path) == before
    assert (tmp_path / "a").exists() == (happens is _replaced)


def test_a_run_whose_folder_is_moved_away_and_back_keeps_every_row(tmp_path: Path, small: SimpleNamespace):
    store = small.store(tmp_path / "a")
    store.path.rename(tmp_path / "b")
    store.append("steps", {"step": 4, "loss": 1.0})
    with pytest.raises(RunError, match="restore it, or record to another folder"):
        store.close("finished", "done")
    (tmp_path / "b").rename(store.path)
    store.close("finished", "done")
    run = Run.open(store.path)
    assert (run.status, len(run.steps)) == ("finished", 4)


def test_two_processes_a_removed_folder_and_the_same_name(tmp_path: Path):
    code = (
        "import sys, time; from lossscope.landscape.storage.run_store import RunStore\n"
        "store = RunStore.create(sys.argv[1], {'arm': 'stale'})\n"
        "for step in range(3): store.append('steps', {'step': step})\n"
        "store.flush(); sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read(1)\n"
        "for step in range(3, 6): store.append('steps', {'step': step})\n"
        "store.close('finished', 'done')\n"
    )
    path = tmp_path / "a"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], text=True, **pipes) as stale:
        assert stale.stdout is not None
        stale.stdout.read(1)
        shutil.rmtree(path)
        store = RunStore.create(path, {"arm": "mine"})
        for step in range(5):
            store.append("steps", {"step": step, "loss": 1.0})
        store.flush()
        _, errors = stale.communicate("x")
    assert stale.returncode == 1
    assert "is no longer the folder of this recording" in errors
    store.close("finished", "done")
    run = Run.open(path)
    assert (run.status, run.manifest["arm"], list(run.steps["loss"])) == ("finished", "mine", [1.0] * 5)


def test_relative_paths_survive_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    store = RunStore.create("runs/a", {})
    store.append("steps", {"step": 1})
    store.flush()
    live = Run.open("runs/a")
    monkeypatch.chdir(tmp_path / "second")
    store.append("steps", {"step": 2})
    store.update_manifest(x=1)
    store.close("finished", "done")
    assert list((tmp_path / "second").iterdir()) == []
    assert list(Run.open(tmp_path / "first" / "runs" / "a").steps["step"]) == [1, 2]
    assert len(live.steps) == 2  # ended since it was opened


def test_a_recorder_that_was_not_closed_is_replaced_in_the_same_process(tmp_path: Path, small: SimpleNamespace):
    old = small.store(tmp_path / "a")
    old.append("steps", {"step": 4, "loss": 4.0})
    new = RunStore.create(tmp_path / "a", {"arm": "new"}, force=True)
    with pytest.raises(RunError, match="was replaced by a newer recorder of this process: use that one"):
        old.flush()
    with pytest.raises(RunError, match="was replaced by a newer recorder"):
        old.close("finished", "done")
    del old
    gc.collect()
    new.append("steps", {"step": 1, "loss": 1.0})
    new.close("finished", "done")
    run = Run.open(tmp_path / "a")
    assert (run.manifest["arm"], run.steps["loss"].tolist(), len(run.probes)) == ("new", [1.0], 0)


@pytest.mark.parametrize("end", ["close", "leave", "flush"])
def test_a_forked_child_costs_its_parent_no_row(tmp_path: Path, small: SimpleNamespace, end: str):
    store = small.store(tmp_path / "a")
    store.append("steps", {"step": 4, "loss": 4.0})
    child = os.fork()
    if child == 0:
        try:
            store.close("finished", "child") if end == "close" else getattr(store, end)()
            os._exit(0)
        except RunError as error:
            os._exit(2 if f"recorded by process {os.getppid()}" in str(error) else 3)
        except BaseException:
            os._exit(4)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (2 if end == "flush" else 0)
    assert Run.open(store.path).status == "running"
    store.append("steps", {"step": 5, "loss": 5.0})
    store.close("finished", "parent")
    run = Run.open(store.path)
    assert list(run.steps["step"]) == [1, 2, 3, 4, 5]
    assert (run.status, run.manifest["how_it_ended"]) == ("finished", "parent")


def _other_segment(mine: Path, other: Path) -> None:
    shutil.copy(segment_paths(other)[-1][2], mine / "journal")


def _other_table(mine: Path, other: Path) -> None:
    closed = other.with_name("closed")
    shutil.copytree(other, closed)
    RunStore.resume(closed, 9).close("finished", "done")
    shutil.copy(closed / "steps.parquet", mine)


@pytest.mark.parametrize("put", [_other_segment, _other_table])
def test_a_file_of_another_run_is_an_error(tmp_path: Path, small: SimpleNamespace, put: Callable[[Path, Path], None]):
    small.crash(small.store(tmp_path / "mine"))
    small.crash(small.store(tmp_path / "other", range(1, 6)))
    put(tmp_path / "mine", tmp_path / "other")
    with pytest.raises(RunError, match=r"(steps-000001\.arrows|steps\.parquet) belongs to another run: move it"):
        _ = Run.open(tmp_path / "mine").steps
    with pytest.raises(RunError, match="belongs to another run"):
        RunStore.resume(tmp_path / "mine", 3)


def test_a_copy_of_a_segment_under_the_next_number_is_an_error(tmp_path: Path, small: SimpleNamespace):
    small.crash(small.store(tmp_path / "a"))
    for table in ("steps", "probes"):
        segment = tmp_path / "a" / "journal" / f"{table}-000001.arrows"
        shutil.copy(segment, segment.with_name(f"{table}-000002.arrows"))
    before = _contents(tmp_path)
    message = r"-000002\.arrows is a copy of (steps|probes)-000001\.arrows: move it out of journal/"
    with pytest.raises(RunError, match=message):
        _ = Run.open(tmp_path / "a").steps
    with pytest.raises(RunError, match=message):
        RunStore.resume(tmp_path / "a", 3)
    assert _contents(tmp_path) == before


def test_a_copied_or_renamed_run_is_whole(tmp_path: Path, small: SimpleNamespace):
    small.crash(small.store(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "a").rename(tmp_path / "b")
    for name in ("copy", "b"):
        store = RunStore.resume(tmp_path / name, 3)
        small.fill(store, [4], loss=1.0)
        store.close("finished", "done")
        assert len(Run.open(tmp_path / name).steps) == 4


def test_every_run_has_an_identity_of_its_own(tmp_path: Path):
    ids = set()
    for name in ("a", "b"):
        RunStore.create(tmp_path / name, {"id": "chosen"}).close("finished", "done")
        ids.add(read_manifest(tmp_path / name)["id"])
    assert len(ids - {"chosen"}) == 2


def test_a_removal_that_is_interrupted_leaves_a_failed_run_that_force_replaces(
    tmp_path: Path, small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    small.store(tmp_path / "a").close("finished", "done")

    def interrupted(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            RunStore.create(tmp_path / "a", {}, force=True)
    run = Run.open(tmp_path / "a")
    assert run.status == "failed"
    assert "it was being replaced when the process ended" in run.ends
    RunStore.create(tmp_path / "a", {}, force=True).close("finished", "done")
    assert sorted(one.name for one in (tmp_path / "a").iterdir()) == [".lock", "run.json"]


def test_a_crashed_run_reads_as_crashed_while_it_is_probed(tmp_path: Path, small: SimpleNamespace):
    small.crash(small.store(tmp_path / "a"))
    before = _contents(tmp_path)
    probing = RunStore.extend(tmp_path / "a", {})
    assert Run.open(tmp_path / "a").status == "crashed"
    assert "died" in Run.open(tmp_path / "a").ends
    with pytest.raises(RunError, match="is being recorded by this process"):
        RunStore.resume(tmp_path / "a", 3)
    probing.leave()
    assert _contents(tmp_path) == before
    store = RunStore.resume(tmp_path / "a", 3)
    assert Run.open(tmp_path / "a").status == "running"
    store.close("stopped", "SIGTERM")
    run = Run.open(tmp_path / "a")
    assert (run.status, run.ends) == ("stopped", "Stopped after step 3: SIGTERM.")
