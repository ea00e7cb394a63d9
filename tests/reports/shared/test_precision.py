"""Notes on proof, memory and differences: each changes with its column, and one line serves all runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import overview, sharpness
from lossscope.reports.shared.precision import precision_notes

ROW = {"measure": "lambda_max", "value": 2.0, "low": 1.9, "high": 2.1, "converged": True, "residual": 0.1}
ORDINARY = {"basis": "whole basis", "proof": None, "memory": None, "product_error": None}
LIMITED = {
    "proof": ({"proof": False}, "lambda_max at 2 evaluations without proof that no eigenvalue lies further out"),
    "basis": ({"basis": "three vectors", "memory": 6_000_000_000}, "of 6 GB at 2 evaluations (three vectors)"),
    "memory": ({"basis": "restarted basis"}, "into the memory at 2 evaluations (restarted basis)"),
    "product_error": ({"product_error": 2e-4}, "a measured relative error of 2.0e-04 at most"),
}


def written(path: Path, **cells: object) -> Run:
    store = RunStore.create(path, {"arm": "one", "seeds": {"init": 0}})
    for step in (1, 5):
        store.append("steps", {"step": step, "loss": 1.0})
        store.append("probes", {"step": step, **ROW, **ORDINARY, **cells})
    store.close("finished", "done")
    return Run.open(path)


def test_an_ordinary_run_has_no_note(tmp_path: Path) -> None:
    assert precision_notes([written(tmp_path / "a")]) == ()


@pytest.mark.parametrize("column", LIMITED)
def test_each_limit_is_a_note_of_both_reports(column: str, tmp_path: Path) -> None:
    cells, words = LIMITED[column]
    run = written(tmp_path / "a", **cells)
    (note,) = precision_notes([run])
    assert note.startswith("a: ")
    assert words in note
    assert note in overview([run]).notes
    assert note in sharpness([run]).notes


def test_runs_with_the_same_limit_share_a_line(tmp_path: Path) -> None:
    runs = [written(tmp_path / name, proof=False) for name in "abc"]
    assert [note.split(":")[0] for note in precision_notes(runs)] == ["All 3 runs"]
    runs.append(written(tmp_path / "d"))
    assert [note.split(":")[0] for note in precision_notes(runs)] == ["3 of 4 runs, such as a"]


def test_the_density_tells_its_basis_too(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "a", {"arm": "one", "seeds": {"init": 0}})
    store.append("steps", {"step": 3, "loss": 1.0})
    density = {"nodes": [1.0], "weights": [1.0], "basis": "restarted basis", "memory": 10**9}
    store.append("densities", {"step": 3, "probe": 0, **density})
    store.close("finished", "done")
    (note,) = precision_notes([Run.open(tmp_path / "a")])
    assert "of 1 GB at 1 evaluation (restarted basis)" in note
