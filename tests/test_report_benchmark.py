"""Runs of the report benchmark at a tiny size: they are runs, and reports read them alike by columns and as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from helpers import benchmark
from lossscope.landscape.run import Run, open_runs
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import TABLES
from lossscope.reports import dynamics, flatness, overview, render, sharpness, spectral_entropy

PAGES = (overview, sharpness, spectral_entropy, flatness, dynamics)


@pytest.fixture(scope="module")
def logs() -> Iterator[Any]:
    yield from benchmark("big_logs")


@pytest.fixture(scope="module")
def path(logs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 2000 steps, for reading only."""
    found = tmp_path_factory.mktemp("big") / "run"
    logs.big_run(found, 2000)
    return found


def test_it_has_the_rows_of_the_preset(path: Path) -> None:
    run = Run.open(path)
    assert run.status == "finished"
    assert {name: len(getattr(run, name)) for name in ("steps", "tensors", "spectra", "pairs")} == {
        "steps": 2000,
        "tensors": 200 * 20,
        "spectra": 20 * 10 * 6,
        "pairs": 3 * 2 * 4,
    }
    assert run.tensors.groupby("track")["tensor"].nunique().to_dict() == {"matrix": 10, "vector": 10}
    assert run.steps["gradient_norm"].notna().sum() == 200
    assert run.tensors["alignment"].notna().mean() == 0.5


def test_it_is_a_run_that_can_go_on(logs: Any, tmp_path: Path) -> None:
    logs.big_run(tmp_path / "run", 1000)
    store = RunStore.resume(tmp_path / "run", 900)
    store.append("steps", {"step": 901, "loss": 1.0})
    store.close("finished", "the loop ended")
    run = Run.open(tmp_path / "run")
    assert run.columns("steps", "step")["step"].max() == 901
    assert run.columns("tensors", "step")["step"].max() == 900


def test_equal_arguments_give_equal_numbers(logs: Any, path: Path, tmp_path: Path) -> None:
    logs.big_run(tmp_path / "again", 2000)
    for table in ("steps", "tensors", "spectra", "pairs"):
        one, other = (pq.read_table(folder / f"{table}.parquet") for folder in (path, tmp_path / "again"))
        assert one.equals(other)


@pytest.mark.parametrize("page", PAGES)
def test_a_report_by_columns_is_that_of_whole_tables(page: Callable[..., Any], path: Path) -> None:
    by_columns, whole = Run.open(path), Run.open(path)
    for table in TABLES:
        getattr(whole, table)
    one, other = (render(page([run]), "json") for run in (by_columns, whole))
    assert one == other
    assert not {"steps", "tensors", "spectra"} & vars(by_columns).keys(), "a table was read as a whole"


def test_short_runs_have_ten_arms(logs: Any, tmp_path: Path) -> None:
    logs.small_runs(tmp_path, 12, steps=20)
    runs = open_runs(tmp_path)
    assert len(runs) == 12
    assert len({run.manifest["arm"] for run in runs}) == 10
    assert json.loads(render(overview(runs), "json"))["subtitle"].startswith("12 runs of 10 arms")
