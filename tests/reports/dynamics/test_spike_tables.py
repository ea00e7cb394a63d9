"""Tests of the tables of loss spikes and of what the first screen says of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import dynamics, overview, render

AT = np.arange(1.0, 33)
FLAT = 1 + 0.01 * (AT % 3)


def spiked(path: Path, *, module: str = "1.", cause: str = "loss", at: int = 30, size: float = 50.0) -> Run:
    """Write a run whose loss spikes at step 32, with one module that leaves its past."""
    store = RunStore.create(path, {"arm": "sgd", "loss_unit": "nats"})
    for tensor in ("0.weight", "1.weight", "1.bias", "2.weight"):
        moved = np.where(at <= AT, size, FLAT) if tensor.startswith(module) else FLAT
        norms = {"gradient_norm": FLAT, "update_norm": moved, "weight_norm": FLAT, "largest_update": FLAT}
        loss = 3.0 if cause == "loss" else math.nan
        store.append(
            "spikes", {"step": 32, "tensor": tensor, "cause": cause, "loss": loss, "level": 2.0, "at": AT, **norms}
        )
    for step in AT:
        store.append("steps", {"step": int(step), "loss": 3.0 if step == 32 else 1.0})
    store.flush()
    store.close("finished", "the loop ended")
    return Run.open(path)


def rows_of(report, key):
    table = next(table for table in report.tables if table.key == key)
    return [dict(zip((column.key for column in table.columns), row, strict=True)) for row in table.rows]


def test_the_module_that_left_first_stands_first(tmp_path: Path) -> None:
    report = dynamics([spiked(tmp_path / "run")])
    (spike,) = rows_of(report, "spikes")
    assert spike["first"] == "1"
    assert spike["left"] == "1 of 3"
    (module,) = rows_of(report, "spike_modules")
    assert (module["module"], module["at"], module["norm"]) == ("1", 30, "update norm")
    assert module["value"] == "50"


def test_no_module_is_named_if_none_left_before_the_loss(tmp_path: Path) -> None:
    (spike,) = rows_of(dynamics([spiked(tmp_path / "run", at=32)]), "spikes")
    assert spike["first"].startswith("none: no layer had left the range of its earlier steps before the loss")


def test_no_module_is_named_if_all_left_at_once(tmp_path: Path) -> None:
    (spike,) = rows_of(dynamics([spiked(tmp_path / "run", module="")]), "spikes")
    assert spike["first"] == "none: 3 of 3 modules left their past at step 30 at once"


def test_the_first_screen_names_the_module(tmp_path: Path) -> None:
    for page in (overview, dynamics):
        text = render(page([spiked(tmp_path / page.__name__)]), "text")
        assert "the first layer to leave the range of its earlier steps was 1, whose update norm" in " ".join(
            text.split()
        )


def test_a_norm_that_is_not_finite_is_told_so(tmp_path: Path) -> None:
    run = spiked(tmp_path / "run", cause="loss not finite", size=math.inf)
    (module,) = rows_of(dynamics([run]), "spike_modules")
    assert (module["mads"], module["value"]) == ("not finite", "not finite")


def test_the_diagnosis_of_a_page_has_the_rules_that_fit_it(tmp_path: Path) -> None:
    run = spiked(tmp_path / "run")
    assert [row["verdict"] for row in rows_of(overview([run]), "diagnosis")] == ["look", "fine"]
    assert {row["question"] for row in rows_of(dynamics([run]), "diagnosis")} == {
        row["question"] for row in rows_of(overview([run]), "diagnosis")
    }
    assert rows_of(overview([run]), "diagnosis")[0]["advice"]
