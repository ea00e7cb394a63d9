from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from lossscope.landscape.storage.journal import Journal, segment_paths
from lossscope.landscape.storage.segment import Segment, read_segment


def _written(folder: Path, flushes, table="steps") -> Path:
    journal = Journal(folder, 1, 1)
    for rows in flushes:
        for row in rows:
            journal.append(table, row)
        journal.flush()
    journal.close()
    return segment_paths(folder)[-1][2]


def _small(folder: Path) -> Path:
    return _written(folder, [[{"step": 1, "probe": 0, "nodes": [2.0, 1.0], "weights": [1.0, 0.0]}]] * 3, "densities")


def _with(path: Path, data: bytes) -> Segment:
    with path.open("r+b") as file:  # much faster than writing a new file thousands of times
        file.write(data)
        file.truncate()
    return read_segment(path)


def test_a_segment_is_a_plain_arrow_stream_that_others_can_read(tmp_path):
    path = _written(tmp_path, [[{"step": 1, "loss": 0.5}], [{"step": 2}]])
    assert pa.ipc.open_stream(path).read_all()["loss"].to_pylist() == [0.5, None]


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 11])
def test_a_file_cut_at_any_byte_gives_exactly_the_whole_records_before_the_cut(tmp_path, every):
    path = _small(tmp_path)
    data = path.read_bytes()
    whole = read_segment(path).rows.to_pylist()
    borders = [at for at in range(len(data)) if data.startswith(b"\xff\xff\xff\xff", at)] + [len(data)]
    sizes = [size for size in range(len(data) + 1) if size % every == 0 or any(abs(size - at) < 9 for at in borders)]
    cuts = [_with(path, data[:size]) for size in reversed(sizes)][::-1]
    ends = sorted({(cut.end, len(cut.rows)) for cut in cuts})
    assert [rows for _, rows in ends] == [0, 0, 1, 2, 3]  # empty, the header, then one row each
    assert ends[-1][0] == len(data)
    for size, cut in zip(sizes, cuts, strict=True):
        assert cut.problem is None
        assert cut.size == size
        assert (cut.end, len(cut.rows)) == max(end for end in ends if end[0] <= size)
        assert cut.rows.to_pylist() == whole[: len(cut.rows)]


def test_a_torn_tail_says_after_which_step_and_byte_it_ends(tmp_path):
    path = _written(tmp_path, [[{"step": 811}], [{"step": 812}], [{"step": 813}]])
    data = path.read_bytes()
    segment = _with(path, data[:-7])
    assert segment.ending == (
        f"journal/steps-000001.arrows ends inside a record after step 812 (byte {segment.end} of {len(data) - 7})"
    )


@pytest.mark.slow
def test_every_flipped_byte_is_noticed_or_cuts_the_file_there(tmp_path):
    path = _small(tmp_path)
    data = path.read_bytes()
    whole = read_segment(path).rows.to_pylist()
    chance = random.Random(0)
    noticed = 0
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        segment = _with(path, bytes(flipped))
        assert segment.rows.to_pylist() == whole[: len(segment.rows)]
        assert segment.problem or segment.end < segment.size
        assert segment.end <= at
        noticed += segment.problem is not None
    assert noticed > 0.98 * len(data)  # the rest made the last record look longer than the file


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_random_damage_gives_a_prefix_and_never_an_exception(data):
    with tempfile.TemporaryDirectory() as folder:
        path = _small(Path(folder))
        content = bytearray(path.read_bytes())
        whole = read_segment(path).rows.to_pylist()
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content)))
            length = data.draw(st.integers(0, 40))
            content[at : at + length] = data.draw(st.binary(max_size=60))
        segment = _with(path, bytes(content))
    assert segment.rows.to_pylist() == whole[: len(segment.rows)]


def test_a_length_that_was_made_longer_is_damage_and_not_a_cut_where_records_follow(tmp_path):
    path = _small(tmp_path)
    data = path.read_bytes()
    first = data.index(b"bytes=") + 6
    segment = _with(path, data[:first] + b"000999999999" + data[first + 12 :])
    assert segment.problem is not None
    assert "is corrupted from byte 0 of" in segment.problem
    assert "move it out of journal/ to read the rest" in segment.problem


def test_a_tail_of_zeros_is_a_power_cut(tmp_path):
    path = _small(tmp_path)
    data = path.read_bytes()
    segment = _with(path, data + b"\0" * 100)
    assert (segment.problem, segment.end, len(segment.rows)) == (None, len(data), 3)


def test_a_segment_of_another_table_is_corrupted(tmp_path):
    path = _small(tmp_path)
    moved = path.with_name("steps-000001.arrows")
    path.rename(moved)
    assert "is corrupted from byte 0" in (read_segment(moved).problem or "")
