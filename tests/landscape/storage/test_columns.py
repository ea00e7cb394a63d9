"""Columns read one by one: only what is asked for is read, and it equals the same columns of the whole table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage import column_cache, parquet
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import TABLES, columns


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the columns of each later read of a Parquet file."""
    found: list[list[str]] = []
    read = pq.ParquetFile.read_row_groups

    def noted(self: pq.ParquetFile, groups: list[int], columns: list[str], **more: object) -> object:
        found.append(list(columns))
        return read(self, groups, columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    return found


def written(path: Path, *, resumed: bool = False, close: bool = True) -> Run:
    """Write a run with gaps, lists and texts, in two sessions if `resumed`."""
    store = RunStore.create(path, {"arm": "one"})
    for step in range(1, 31):
        store.append("steps", {"step": step, "loss": None if step % 7 == 0 else 1.0 / step, "synced": step % 2 == 0})
        for name, track in (("a", "matrix"), ("b", "vector"), ("c", "matrix")):
            row = {"step": step, "tensor": name, "track": track, "energy": step + 0.5, "alignment": None}
            store.append("tensors", row | ({} if track == "vector" else {"alignment": -float(step)}))
        values = [] if step == 3 else [5.0 / step, 1.0][: 1 + step % 2]
        store.append("spectra", {"step": step, "tensor": "a", "object": "weight", "values": values, "norm": 1.0})
    if resumed:
        store.flush()
        store.close("stopped", "a pause")
        store = RunStore.resume(path, 20)
        for step in range(21, 26):
            store.append("steps", {"step": step, "loss": 100.0 + step})
            store.append("tensors", {"step": step, "tensor": "a", "track": "matrix", "energy": 100.0 + step})
    store.flush()
    if close:
        store.close("finished", "the loop ended")
    return Run.open(path)


LIVE, RESUMED = {"close": False}, {"resumed": True}
KINDS = {"ended": {}, "live": LIVE, "resumed": RESUMED, "resumed, live": {**LIVE, **RESUMED}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_column_equals_that_of_the_whole_table(kind: str, tmp_path: Path) -> None:
    one, whole = written(tmp_path / "run", **KINDS[kind]), Run.open(tmp_path / "run")
    for table in ("steps", "tensors", "spectra"):
        expected = getattr(whole, table)
        for name in columns(table):
            pd.testing.assert_frame_equal(one.columns(table, name), expected[[name]])
        pd.testing.assert_frame_equal(one.columns(table, *columns(table)[::-1]), expected[list(columns(table)[::-1])])
        pd.testing.assert_frame_equal(
            one.last_rows(table).reset_index(drop=True),
            expected[expected["step"] == expected["step"].max()].reset_index(drop=True),
        )
        pd.testing.assert_frame_equal(whole.last_rows(table), expected[expected["step"] == expected["step"].max()])


@pytest.mark.parametrize("few", [10, 1000])
def test_numbers_are_float64_with_nan_for_null(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_cache, "_FEW", few)
    run = written(tmp_path / "run")
    losses, synced, steps = run.numbers("steps", "loss", "synced", "step")
    assert losses.dtype == synced.dtype == steps.dtype == np.float64
    assert np.isnan(losses).sum() == 4
    assert synced[:2].tolist() == [0.0, 1.0]
    assert np.isnan(run.numbers("steps", "passes")[0]).all()
    whole = Run.open(tmp_path / "run")
    assert len(whole.steps) == 30
    for one, other in zip(run.numbers("steps", "loss", "step"), whole.numbers("steps", "loss", "step"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_list_has_its_first_entry_and_its_length(tmp_path: Path) -> None:
    run, whole = written(tmp_path / "run"), Run.open(tmp_path / "run")
    found = run.columns("spectra", "step", "values.first", "values.length")
    expected = whole.spectra["values"]
    assert found["values.length"].tolist() == [len(one) for one in expected]
    np.testing.assert_array_equal(found["values.first"], [one[0] if len(one) else np.nan for one in expected])
    pd.testing.assert_frame_equal(whole.columns("spectra", "step", "values.first", "values.length"), found)


def test_only_what_is_asked_for_is_read_and_once(tmp_path: Path, asked: list[list[str]]) -> None:
    run = written(tmp_path / "run")
    run.columns("tensors", "track", "energy")
    assert asked == [["step", "track", "energy"]]
    run.columns("tensors", "energy", "step", "track")
    assert len(asked) == 1
    run.columns("tensors", "energy", "alignment")
    assert asked[1:] == [["step", "alignment"]]
    assert run.ends.startswith("Finished after step 30")
    assert asked[2:] == [["step"]]
    assert "values" not in {name for names in asked for name in names}


def test_damage_in_a_column_that_is_not_asked_for_hides_no_other(tmp_path: Path) -> None:
    from lossscope.landscape.errors import RunError

    run = written(tmp_path / "run")
    path = tmp_path / "run" / "tensors.parquet"
    expected = run.columns("tensors", "energy")
    place = pq.read_metadata(path).row_group(0).column(columns("tensors").index("alignment"))
    content = bytearray(path.read_bytes())
    begin = place.dictionary_page_offset or place.data_page_offset
    content[begin + place.total_compressed_size - 4] ^= 0xFF
    path.write_bytes(bytes(content))
    again = Run.open(tmp_path / "run")
    pd.testing.assert_frame_equal(again.columns("tensors", "energy"), expected)
    with pytest.raises(RunError, match=r"tensors\.parquet cannot be read"):
        again.columns("tensors", "alignment")
    with pytest.raises(RunError, match=r"tensors\.parquet cannot be read"):
        _ = again.tensors


def test_columns_of_a_table_that_changed_in_between_are_of_one_state(tmp_path: Path) -> None:
    """Recording ends between two reads, with rows that the first did not see."""
    store = RunStore.create(tmp_path / "run", {"arm": "one"})
    store.append("steps", {"step": 1, "loss": 1.0, "phi": 0.1})
    store.flush()
    run = Run.open(tmp_path / "run")
    assert len(run.columns("steps", "loss")) == 1
    store.append("steps", {"step": 2, "loss": 2.0, "phi": 0.2})
    store.close("finished", "the loop ended")
    assert run.columns("steps", "loss", "phi").to_numpy().tolist() == [[1.0, 0.1], [2.0, 0.2]]
    assert run.columns("steps", "step", "loss").to_numpy().tolist() == [[1, 1.0], [2, 2.0]]


def test_the_cache_is_bounded_and_forgotten_columns_are_read_again(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_cache, "_MOST_BYTES", 90 * 8 * 2)
    run = written(tmp_path / "run")
    first = run.columns("tensors", "energy")
    run.columns("tensors", "alignment")
    run.columns("tensors", "energy")
    assert len(asked) == 2
    run.columns("tensors", "lr")  # alignment was used longest ago
    run.columns("tensors", "energy")
    assert len(asked) == 3
    run.columns("tensors", "alignment")
    assert asked[3] == ["step", "alignment"]
    pd.testing.assert_frame_equal(run.columns("tensors", "energy"), first)


def test_large_reads_are_cut_into_parts(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(tmp_path / "run").tensors
    monkeypatch.setattr(column_cache, "_CELLS", 180)
    run = Run.open(tmp_path / "run")
    run.columns("tensors", "step")
    asked.clear()
    names = ("energy", "alignment", "lr", "track", "tensor")
    pd.testing.assert_frame_equal(run.columns("tensors", *names), whole[list(names)])
    assert [len(part) - 1 for part in asked] == [2, 2, 1]


def test_the_last_rows_are_read_from_the_last_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[int]] = []
    read = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(parquet, "_GROUP", 10)
    run = written(tmp_path / "run")
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, some, columns, **more: groups.append(list(some)) or read(self, some, columns, **more),
    )
    found = run.last_rows("tensors")
    assert groups[-1] == [8]
    assert found["step"].tolist() == [30, 30, 30]
    assert found["tensor"].tolist() == ["a", "b", "c"]
    assert list(found.columns) == list(columns("tensors"))


def test_an_empty_run_has_empty_columns(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", {"arm": "one"}).close("finished", "nothing to do")
    run = Run.open(tmp_path / "run")
    for table in TABLES:
        assert list(run.columns(table, *columns(table))) == list(columns(table))
        assert len(run.last_rows(table)) == 0


def test_an_unknown_table_or_column_is_an_error(write_run: Callable[..., Run]) -> None:
    run = write_run("run")
    with pytest.raises(ValueError, match="unknown table 'losses'"):
        run.columns("losses", "step")
    with pytest.raises(KeyError, match="los"):
        run.columns("steps", "los")
