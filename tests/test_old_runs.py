"""A run recorded with schema 3, before files and measures were renamed, opens and reports."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from html_page import HtmlPage
from lossscope import reports
from lossscope.landscape.measures.options import SolverOptions
from lossscope.landscape.reprobe.checkpoint_probe import probe
from lossscope.landscape.run import Run
from lossscope.landscape.storage.schema import SCHEMA_VERSION, TABLES
from lossscope.landscape.training.training import recorded_config, train

LAMBDA_MAX = 8.815948173832084  # nats, at step 60; the value in the committed file
OLD = Path(__file__).parent / "data" / "run_schema_3"


@pytest.fixture
def old(tmp_path: Path) -> Run:
    """Return a copy of the committed run, opened."""
    return Run.open(shutil.copytree(OLD, tmp_path / OLD.name))


@pytest.mark.parametrize("table", TABLES)
def test_every_table_of_schema_3_is_read(old: Run, table: str) -> None:
    assert old.manifest["schema_version"] == 3
    assert bool(len(getattr(old, table))) == (table not in ("curves", "spikes"))  # schemas 5 and 6 have them


def test_numbers_of_schema_3_are_read_as_they_were_written(old: Run) -> None:
    assert len(old.steps) == old.manifest["steps"] == 60
    top = old.estimates[(old.estimates["measure"] == "lambda_max") & (old.estimates["step"] == 60)]
    assert float(top["value"].iloc[0]) == pytest.approx(LAMBDA_MAX, rel=1e-12)


@pytest.mark.parametrize("kind", ["overview", "sharpness", "spectral_entropy", "flatness", "dynamics"])
@pytest.mark.parametrize("format", ["text", "json", "html"])
def test_every_report_reads_schema_3(old: Run, kind: str, format: str) -> None:
    report = getattr(reports, kind)([old])
    assert any(len(table.rows) for table in report.tables)
    shown = reports.render(report, format)
    assert "run_schema_3" in (HtmlPage(shown).words if format == "html" else shown)


def test_the_old_name_of_a_measure_is_read_as_the_new_one(old: Run) -> None:
    measures = set(old.probes["measure"])
    assert "directional_edge_ratio" in measures
    assert "edge_ratio" not in measures


def test_the_loss_of_a_workload_of_schema_3_is_in_nats(old: Run) -> None:
    assert "loss_unit" not in old.manifest
    assert old.loss_unit == "nats"


def test_a_run_of_schema_3_resumes(old: Run) -> None:
    config = recorded_config(old.path)
    assert config.evaluations is None
    longer = replace(config, steps=62, out=str(old.path.parent), name=old.name)
    run = train(longer, resume=True)
    assert run.status == "finished"
    assert len(run.steps) == 62
    assert run.manifest["schema_version"] == SCHEMA_VERSION
    assert run.manifest["optimizer_facts"]["class"].endswith("ARS2Neo")
    assert run.manifest["loss_unit"] == "nats"


def test_a_checkpoint_of_schema_3_is_probed_again(old: Run) -> None:
    before = old.estimates[(old.estimates["measure"] == "lambda_max") & (old.estimates["step"] == 60)]
    probe(old.path, measures=["lambda_max"], effort=SolverOptions(0.01, 0.05, 64, seed=0))
    rows = Run.open(old.path).probes
    again = rows[(rows["measure"] == "lambda_max") & (rows["step"] == 60)]
    assert len(again) == len(before) + 1
    assert again["value"].iloc[-1] == pytest.approx(LAMBDA_MAX, rel=1e-3)
