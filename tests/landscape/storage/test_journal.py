from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.journal import Journal, _SegmentWriter, segment_paths
from lossscope.landscape.storage.schema import TABLES
from lossscope.landscape.storage.segment import read_segment

_VALUES = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    "floats": st.lists(st.floats(allow_nan=False), max_size=4),
}


def _rows(table):
    required = {c.name: _VALUES[c.type] for c in TABLES[table] if c.required}
    optional = {c.name: st.none() | _VALUES[c.type] for c in TABLES[table] if not c.required}
    return st.fixed_dictionaries(required, optional=optional)


def _written(folder: Path, flushes, table="steps", **origin) -> Path:
    journal = Journal(folder, origin.pop("session", 1), origin.pop("segment", 1), **origin)
    for rows in flushes:
        for row in rows:
            journal.append(table, row)
        journal.flush()
    journal.close()
    return segment_paths(folder)[-1][2]


@pytest.mark.parametrize("table", TABLES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_what_is_read_is_what_was_written(table, data):
    flushes = data.draw(st.lists(st.lists(_rows(table), min_size=1, max_size=4), min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        segment = read_segment(_written(Path(folder), flushes, table, session=3, resumed_at=7))
    names = [column.name for column in TABLES[table]]
    expected = [{name: row.get(name) for name in names} for rows in flushes for row in rows]
    assert segment.rows.to_pylist() == expected
    assert (segment.session, segment.resumed_at, segment.problem) == (3, 7, None)
    assert segment.end == segment.size


def test_appending_never_shortens_or_changes_what_is_on_file(tmp_path):
    before: dict[Path, bytes] = {}
    for session in (1, 2):
        journal = Journal(tmp_path, session, session)
        for step in range(6):
            journal.append("steps", {"step": step})
            if step % 2:
                journal.append("probes", {"step": step, "measure": "trace"})
            journal.flush()
            now = {path: path.read_bytes() for _, _, path in segment_paths(tmp_path)}
            assert all(now[path].startswith(content) for path, content in before.items())
            before = now
        journal.close()
    assert len(before) == 4


def test_an_existing_segment_is_never_opened_again(tmp_path):
    path = _written(tmp_path, [[{"step": 1}]])
    content = path.read_bytes()
    _written(tmp_path, [[{"step": 2}]])  # the same segment number again
    assert path.read_bytes() == content
    assert [name.name for *_, name in segment_paths(tmp_path)] == ["steps-000001.arrows", "steps-000002.arrows"]


def test_opening_a_segment_that_exists_fails_before_it_is_touched(tmp_path):
    path = _written(tmp_path, [[{"step": 1}]])
    content = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"steps-000001\.arrows"):
        _SegmentWriter(path, "steps", {"session": "2"})
    assert path.read_bytes() == content


def test_no_file_is_made_before_a_table_has_a_row(tmp_path):
    journal = Journal(tmp_path, 1, 1)
    journal.flush()
    assert list(tmp_path.iterdir()) == []
    journal.append("steps", {"step": 1})
    journal.flush()
    assert [table for table, *_ in segment_paths(tmp_path)] == ["steps"]
    journal.close()


def test_the_first_row_is_flushed_at_once_and_the_next_after_a_second(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("lossscope.landscape.storage.journal.time.monotonic", lambda: clock[0])
    journal = Journal(tmp_path, 1, 1)
    flushed = []
    for step, seconds in enumerate([0.0, 0.5, 0.4, 0.2, 0.9, 0.2]):
        clock[0] += seconds
        journal.append("steps", {"step": step})
        flushed.append(journal.due())
        if flushed[-1]:
            journal.flush()
    journal.close()
    assert flushed == [True, False, False, True, False, True]


def test_steps_are_written_after_all_other_tables(tmp_path, monkeypatch):
    journal = Journal(tmp_path, 1, 1)
    order = []
    monkeypatch.setattr(journal, "_write", order.append)
    for table, row in [
        ("steps", {}),
        ("probes", {"measure": "trace"}),
        ("densities", {"probe": 0, "nodes": [], "weights": []}),
    ]:
        journal.append(table, {"step": 1, **row})
    journal.flush()
    assert set(order) == {"steps", "probes", "densities"}
    assert order[-1] == "steps"


def test_a_full_disk_loses_no_row_and_the_torn_segment_is_left_behind(tmp_path):
    journal = Journal(tmp_path, 1, 1)
    journal.append("steps", {"step": 1})
    journal.flush()
    writer = journal._writers["steps"]
    real = writer._file

    class Full:
        def write(self, rest):
            real.write(rest[:100])
            raise OSError(28, "No space left on device")

        def close(self):
            real.close()

    writer._file = Full()
    journal.append("steps", {"step": 2})
    with pytest.raises(RunError, match="No space left on device; free some space, no row is lost yet"):
        journal.flush()
    journal.flush()
    journal.close()
    first, second = (read_segment(path) for *_, path in segment_paths(tmp_path))
    assert first.rows["step"].to_pylist() == [1]
    assert first.end + 100 == first.size
    assert second.rows["step"].to_pylist() == [2]


def test_a_forked_child_writes_no_row_of_its_parent(tmp_path, monkeypatch):
    journal = Journal(tmp_path, 1, 1)
    journal.append("steps", {"step": 1})
    monkeypatch.setattr(os, "getpid", lambda: -1)
    journal.flush()
    assert segment_paths(tmp_path) == []
