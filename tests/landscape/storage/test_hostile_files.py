"""Pipes, devices, folders, links and files too large in place of a run's files: one clear error, never a wait."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lossscope.landscape.errors import LandscapeError, RunError
from lossscope.landscape.recording.checkpoints import checkpoints
from lossscope.landscape.run import Run, open_runs, run_folders
from lossscope.landscape.storage import manifest as manifest_module, segment as segment_module
from lossscope.landscape.storage.files import atomic_write
from lossscope.landscape.storage.journal import segment_paths
from lossscope.landscape.storage.manifest import DEEPEST, LONGEST_MANIFEST, read_manifest
from lossscope.landscape.storage.manifest_types import LONGEST_TEXT, MOST_SESSIONS
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.run_tables import RunTables
from lossscope.landscape.storage.schema import LONGEST_CELL, SCHEMA_VERSION
from lossscope.reports.render.output import write_text

TABLE = ("probes", "steps", "densities")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has at most about a hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def _folder(path: Path) -> None:
    path.mkdir()


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS = (_pipe, _device, _socket, _folder, _dangling, _loop)
PLACES = ("run.json", "steps.parquet", "journal/steps-000002.arrows", "journal", ".lock")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a crashed run with a compacted and an open session."""
    path = tmp_path_factory.mktemp("runs") / "a"
    for session in (1, 2):
        store = RunStore.create(path, {"arm": "sgd"}) if session == 1 else RunStore.resume(path, 2)
        store.append("probes", {"step": session, "measure": "trace", "value": 1.0})
        store.append("densities", {"step": session, "probe": 0, "nodes": [1.0, 2.0], "weights": [0.5, 0.5]})
        store.append("steps", {"step": session, "loss": 1.0})
        store.close("finished", "done") if session == 1 else store._leave()
    return path


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    """Return a copy of the template, beside a run that is intact."""
    shutil.copytree(template, tmp_path / "runs" / "a")
    return shutil.copytree(template, tmp_path / "runs" / "b")


def _every_use(path: Path) -> list[str]:
    """Use a run in every way, and return the messages of the errors."""
    found = []

    def use(action: Callable[[], object]) -> None:
        try:
            action()
        except LandscapeError as error:
            found.append(str(error))

    use(lambda: [Run.open(path).ends, Run.open(path).status])
    use(lambda: [len(getattr(Run.open(path), table)) for table in TABLE])
    use(lambda: checkpoints(path))
    use(lambda: RunStore.extend(path, {}).leave())
    use(lambda: RunStore.resume(path, 2).close("finished", "done"))
    assert not any("\n" in message for message in found)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_anything_in_place_of_a_file_is_an_error_that_names_it(run: Path, place: str, kind: Callable[[Path], None]):
    path = run / place
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kind(path)
    messages = _every_use(run)
    if (place, kind) == ("journal", _folder):  # an empty journal
        assert messages == []
        return
    assert messages
    assert all(str(run) in one for one in messages)
    assert any(place in one or one.startswith("cannot write into") for one in messages)
    assert len(run_folders(run.parent)) == 2
    assert len(Run.open(run.parent / "a").steps) == 2


@pytest.mark.parametrize("kind", [_pipe, _device, _dangling, _loop])
def test_anything_in_place_of_checkpoints_is_an_error_that_names_it(run: Path, kind: Callable[[Path], None]):
    kind(run / "checkpoints")
    with pytest.raises(RunError, match=r"checkpoints.*(a link to nothing|cannot list|Not a directory)|cannot list"):
        checkpoints(run)
    assert Run.open(run).status == "crashed"


def test_a_path_with_a_nul_is_one_line():
    with pytest.raises(RunError, match="embedded null"):
        open_runs("a\0b")


def test_a_folder_of_runs_with_a_link_to_itself_is_listed(run: Path):
    (run.parent / "self").symlink_to("self")
    assert [one.name for one in open_runs(run.parent)] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sessions": -1}, "sessions must be a list, got -1"),
        ({"sessions": [{"session": -1}]}, r"sessions\[0\]\.session must be an integer from 0"),
        ({"sessions": [{}]}, r"sessions\[0\] must have the key 'session'"),
        ({"sessions": [{"session": 1}] * (MOST_SESSIONS + 1)}, f"at most {MOST_SESSIONS:,} are allowed"),
        ({"overhead": "x"}, "overhead must be an object, got 'x'"),
        ({"overhead": {"wall_seconds": "x"}}, r"overhead\.wall_seconds must be a number"),
        ({"curvature_gaps": [1]}, r"curvature_gaps\[0\] must be an object, got 1"),
        ({"curvature_gaps": [{"why": "x"}]}, r"curvature_gaps\[0\] must have the key 'step'"),
        ({"data_hash": [1]}, r"data_hash must be text, got \[1\]"),
        ({"arm": "a" * (LONGEST_TEXT + 1)}, f"arm has {LONGEST_TEXT + 1:,} characters, at most {LONGEST_TEXT:,}"),
        ({"arm": 5}, "arm must be text, got 5"),
        ({"model": {"tensors": [{"shape": ["x"]}]}}, r"model\.tensors\[0\]\.shape\[0\] must be an integer"),
        ({"trigger": {"lambda": []}}, r"trigger\.lambda must be a number, got \[\]"),
        ({"optimizer_facts": {"groups": [{"parameters": 1}]}}, r"groups\[0\]\.parameters must be a list, got 1"),
        ({"steps": 2.5}, "steps must be an integer from 0"),
        ({"config": 7}, "config must be an object, got 7"),
        ({"status": ["finished"]}, "status must be text"),
        ({"x": [[[]]] * 10 + [json.loads("[" * 60 + "]" * 60)]}, f"more than {DEEPEST} objects and lists"),
    ],
)
def test_a_wrong_type_in_the_manifest_is_one_line_and_changes_nothing(run: Path, changes, message):
    content = json.loads((run / "run.json").read_text()) | changes
    (run / "run.json").write_text(json.dumps(content))
    before = {one: one.read_bytes() for one in run.rglob("*") if one.is_file()}
    for use in (Run.open, lambda path: RunStore.resume(path, 1), lambda path: RunStore.extend(path, {})):
        with pytest.raises(RunError, match=rf"^[^\n]*run\.json[^\n]*{message}[^\n]*$"):
            use(run)
    assert {one: one.read_bytes() for one in run.rglob("*") if one.is_file()} == before


def test_a_wrong_type_is_refused_when_it_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match="overhead must be an object, got 'x'"):
        RunStore.create(tmp_path / "a", {"overhead": "x"})
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_is_too_long_is_not_read_and_not_written(run: Path, tmp_path: Path, monkeypatch):
    with (run / "run.json").open("r+b") as file:
        file.truncate(LONGEST_MANIFEST + 1)
    with pytest.raises(RunError, match=f"has {LONGEST_MANIFEST + 1:,} bytes, at most {LONGEST_MANIFEST:,} are read"):
        read_manifest(run)
    monkeypatch.setattr(manifest_module, "LONGEST_MANIFEST", 1000)
    with pytest.raises(ValueError, match="bytes, at most 1,000 are allowed"):
        RunStore.create(tmp_path / "long", {"config": {"x": "y" * 1000}})


def test_a_segment_that_is_too_long_is_not_read(run: Path, monkeypatch):
    from lossscope.landscape.storage import run_tables as tables_module

    monkeypatch.setattr(tables_module, "LARGEST_TABLE", 500)
    with pytest.raises(RunError, match=r"segments of steps in .* have [\d,]+ bytes, at most 500 are read"):
        RunTables(run, None).rows("steps")
    monkeypatch.setattr(segment_module, "LARGEST_TABLE", 500)
    segment = segment_module.read_segment(run / "journal" / "steps-000002.arrows")
    assert "bytes, at most 500 are read" in str(segment.problem)


def test_a_small_segment_that_unpacks_to_much_is_refused(run: Path):
    path = segment_paths(run)[0][2]
    whole = segment_module.read_segment(path)
    content = path.read_bytes()
    schema = pa.ipc.open_stream(path).schema
    header = content[: content.index(b"\xff\xff\xff\xff", 8)]
    for codec, problem in ((None, None), ("zstd", "is corrupted from byte"), ("lz4", "is corrupted from byte")):
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=codec)
        writer = pa.ipc.new_stream(sink, schema, options=options)
        writer.write_batch(whole.rows.to_batches()[0], custom_metadata={"seal": segment_module.BLANK_SEAL})
        stream = sink.getvalue().to_pybytes()
        message = stream[stream.index(b"\xff\xff\xff\xff", 8) :]
        path.write_bytes(header + segment_module.sealed(message))
        found = segment_module.read_segment(path)
        assert (problem in str(found.problem)) if problem else found.problem is None
        assert len(found.rows) == (0 if problem else len(whole.rows))


def _rewrite(run: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace a Parquet file by one with other rows."""
    path = run / f"{table}.parquet"
    rows = pq.read_table(path)
    pq.write_table(change(rows).replace_schema_metadata(rows.schema.metadata), path, compression="zstd")


def _many_rows(rows: pa.Table) -> pa.Table:
    return rows.take(np.zeros(30_000, dtype=np.int64))


def _one_text(size: int) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        index = rows.schema.get_field_index("measure")
        return rows.set_column(index, rows.schema.field(index), pa.array(["m" * size] * len(rows)))

    return change


def _many_texts(rows: pa.Table) -> pa.Table:
    return _one_text(LONGEST_CELL)(rows.take(np.zeros(300, dtype=np.int64)))


def _one_list(rows: pa.Table) -> pa.Table:
    index = rows.schema.get_field_index("nodes")
    return rows.set_column(index, rows.schema.field(index), pa.array([[0.0] * 300_000], pa.list_(pa.float64())))


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("steps", _many_rows, "it unpacks to .* bytes, at most 2,000,000 are read"),
        ("probes", _many_texts, "it unpacks to .* bytes, at most 2,000,000 are read"),
        ("densities", _one_list, "it unpacks to .* bytes, at most 2,000,000 are read"),
        ("probes", _one_text(4 * LONGEST_CELL + 1), "a text of 40,001 bytes, at most 40,000 are allowed"),
    ],
)
def test_a_small_parquet_file_that_unpacks_to_much_is_refused_before_it_is_read(
    run: Path, table, change, message, monkeypatch
):
    from lossscope.landscape.storage import parquet as parquet_module

    monkeypatch.setattr(parquet_module, "LARGEST_TABLE", 2_000_000)
    assert len(getattr(Run.open(run), table)) == 2
    _rewrite(run, table, change)
    assert (run / f"{table}.parquet").stat().st_size < 30_000
    with pytest.raises(RunError, match=message):
        getattr(Run.open(run), table)


def test_a_text_too_long_to_be_read_is_not_written(tmp_path: Path):
    store = RunStore.create(tmp_path / "a", {})
    with pytest.raises(ValueError, match="column 'measure' of table probes holds text values"):
        store.append("probes", {"step": 1, "measure": "m" * (LONGEST_CELL + 1)})
    store.append("probes", {"step": 1, "measure": "m" * LONGEST_CELL})
    store.close("finished", "done")
    assert len(Run.open(store.path).probes["measure"][0]) == LONGEST_CELL


def test_a_list_of_segments_with_other_names_is_an_error(run: Path):
    path = run / "steps.parquet"
    rows = pq.read_table(path)
    facts = json.loads(rows.schema.metadata[b"lossscope"]) | {"segments": ["../../etc/passwd"]}
    pq.write_table(rows.replace_schema_metadata({**rows.schema.metadata, b"lossscope": json.dumps(facts)}), path)
    assert any("its list of segments holds another name" in one for one in _every_use(run))


@pytest.mark.parametrize("kind", [_pipe, _device, _socket, _folder, _dangling, _loop])
def test_only_regular_files_are_replaced(tmp_path: Path, kind: Callable[[Path], None]):
    path = tmp_path / "out.html"
    kind(path)
    before = os.lstat(path)
    with pytest.raises(LandscapeError, match=r"out\.html"):
        write_text(path, "x", force=True)
    with pytest.raises(LandscapeError, match=r"out\.html"):
        atomic_write(path, b"x")
    assert os.path.samestat(os.lstat(path), before)
    assert [one.name for one in tmp_path.iterdir()] == ["out.html"]


def test_a_link_to_a_regular_file_stays_a_link(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    write_text(tmp_path / "link", "new", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "real").read_text() == "new"


@pytest.mark.parametrize("name", ["x" * 255, "ö" * 127])
def test_the_longest_name_that_the_system_allows_is_written(tmp_path: Path, name: str):
    write_text(tmp_path / name, "x")
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x" * 256, "nul\0"])
def test_a_name_that_the_system_refuses_is_one_line(tmp_path: Path, name: str):
    with pytest.raises(LandscapeError, match="; choose another"):
        write_text(tmp_path / name, "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_no_temporary_file(tmp_path: Path, monkeypatch, error: BaseException):
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises((RunError, KeyboardInterrupt), match=r"Read-only file system|^$"):
        atomic_write(tmp_path / "x", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["stat", "open", "listdir"])
def test_a_folder_without_permission_is_one_line(run: Path, monkeypatch, name: str):
    real = getattr(os, name)

    def refusing(path: object, *more: object, **others: object) -> object:
        if str(path).startswith(str(run)):
            raise PermissionError(13, "Permission denied")
        return real(path, *more, **others)

    monkeypatch.setattr(os, name, refusing)
    messages = _every_use(run)
    assert all("Permission denied" in one or "does not exist" in one for one in messages)
    assert len(messages) >= (1 if name == "listdir" else 4)


def test_the_version_of_a_manifest_is_still_checked_first(run: Path):
    (run / "run.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1, "sessions": -1}))
    with pytest.raises(RunError, match="pip install -U lossscope"):
        Run.open(run)
