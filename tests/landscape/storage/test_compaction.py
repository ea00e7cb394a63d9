from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from lossscope.landscape.errors import RunError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore


def test_later_rows_replace_those_beyond_the_step_of_resumption(tmp_path, small):
    small.crash(small.store(tmp_path / "a", range(1, 6)))
    store = RunStore.resume(tmp_path / "a", 3)
    assert len(small.recorded(store.path)["steps"]) == 5  # a session without a row supersedes nothing
    small.fill(store, [4], tables=("steps",), loss=1.0)
    found = small.recorded(store.path)
    assert found["steps"] == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0)]
    assert found["probes"] == [(1, 0.0), (2, 0.0), (3, 0.0)]  # though this session has no probe yet
    store.close("finished", "done")
    assert small.recorded(store.path) == found


def test_a_session_whose_first_row_was_cut_supersedes_nothing(tmp_path, small):
    small.crash(small.store(tmp_path / "a", range(1, 6)))
    store = RunStore.resume(tmp_path / "a", 3)
    small.fill(store, [4], tables=("steps",), loss=1.0)
    small.crash(store)
    segment = store.path / "journal" / "steps-000002.arrows"
    segment.write_bytes(segment.read_bytes()[:-1])
    assert [loss for _, loss in small.recorded(store.path)["steps"]] == [0.0] * 5


def test_what_a_crash_left_half_written_is_removed_by_the_next_compaction(tmp_path, small):
    store = small.store(tmp_path / "a")
    (store.path / ".steps.parquet.tmp-1").write_bytes(b"half")
    (store.path / ".run.json.tmp-1").write_bytes(b"half")
    store.close("finished", "done")
    assert list(store.path.glob(".*.tmp-*")) == []


def test_three_sessions_that_each_go_further_back(tmp_path, small):
    path = tmp_path / "a"
    small.crash(small.store(path, range(1, 10)))
    for number, (at, steps) in enumerate([(6, range(7, 9)), (7, range(8, 12)), (2, range(3, 5))]):
        store = RunStore.resume(path, at)
        small.fill(store, steps, loss=float(number + 1))
        found = small.recorded(path)
        store.close("finished", "done") if number == 1 else small.crash(store)
        assert small.recorded(path) == found
    assert found["steps"] == [(1, 0.0), (2, 0.0), (3, 3.0), (4, 3.0)]


def test_compaction_after_resuming_merges_parquet_and_journal(tmp_path, small):
    path = tmp_path / "a"
    small.store(path, range(1, 4)).close("finished", "done")
    store = RunStore.resume(path, 2)
    small.fill(store, [3, 4], loss=1.0)
    assert [name.name for name in (path / "journal").iterdir() if "steps" in name.name] == ["steps-000002.arrows"]
    store.close("finished", "again")
    assert small.recorded(path)["steps"] == [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)]
    assert [one["resumed_at"] for one in Run.open(path).manifest["sessions"]] == [None, 2]


class _Crash(BaseException):
    pass


# two tables and the manifest are replaced, with two syncs each; two segments are removed
CALLS = [(name, call) for name, calls in (("replace", 3), ("unlink", 2), ("fsync", 6)) for call in range(1, calls + 2)]


@pytest.mark.parametrize(
    ("name", "call", "error"),
    [
        pytest.param(name, call, error, marks=pytest.mark.slow if (place + other) % 2 else ())
        for place, (name, call) in enumerate(CALLS)
        for other, error in enumerate((_Crash, OSError))
    ],
)
def test_a_crash_at_any_point_of_compaction_loses_and_doubles_nothing(tmp_path, monkeypatch, name, call, error, small):
    path = tmp_path / "a"
    first = small.store(path, range(1, 6))
    first.close("finished", "done")
    store = RunStore.resume(path, 3)
    small.fill(store, [4, 5], loss=1.0)
    expected = small.recorded(path)
    assert expected["steps"] == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0), (5, 1.0)]
    calls = [0]
    real = {"replace": os.replace, "unlink": Path.unlink, "fsync": os.fsync}[name]

    def failing(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call or (error is _Crash and calls[0] > call):
            raise error(28, "crash")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*{"replace": (os, "replace"), "unlink": (Path, "unlink"), "fsync": (os, "fsync")}[name], failing)
        with contextlib.suppress(_Crash, RunError):
            store.close("finished", "done")
    assert small.recorded(path) == expected
    store.close("finished", "done")  # closed already, or repeated where the manifest could not be written
    assert store.closed
    assert error is _Crash or Run.open(path).status == "finished"
    again = RunStore.resume(path, 5)
    small.fill(again, [6], loss=2.0)
    again.close("finished", "done")
    assert small.recorded(path) == {table: [*rows, (6, 2.0)] for table, rows in expected.items()}
    inside = sorted(one.name for one in path.iterdir())
    assert inside == [".lock", "probes.parquet", "run.json", "steps.parquet"]


def test_a_corrupted_segment_stops_compaction_but_not_the_end_of_the_run(tmp_path, small):
    store = small.store(tmp_path / "a", range(1, 6))
    segment = store.path / "journal" / "probes-000001.arrows"
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    with pytest.raises(RunError, match=r"probes-000001\.arrows is corrupted from byte \d+ of \d+ on"):
        store.close("finished", "done")
    run = Run.open(store.path)
    assert run.status == "finished"
    assert "is corrupted" in run.manifest["how_it_ended"]
    assert len(run.steps) == 5
    with pytest.raises(RunError, match="to read the rest"):
        _ = run.probes
    segment.rename(tmp_path / "aside")
    assert len(Run.open(store.path).probes) == 0
