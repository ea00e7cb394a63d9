"""A run recorded with schema 3, before files and measures were renamed, opens and reports."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lossscope import reports
from lossscope.landscape.run import Run
from lossscope.landscape.storage.schema import TABLES

LAMBDA_MAX = 8.815948173832084  # nats, at step 60, as it stood in the file when it was committed
OLD = Path(__file__).parent / "data" / "run_schema_3"


@pytest.fixture
def old(tmp_path: Path) -> Run:
    """Return a copy of the committed run, opened."""
    return Run.open(shutil.copytree(OLD, tmp_path / OLD.name))


@pytest.mark.parametrize("table", TABLES)
def test_every_table_of_schema_3_is_read(old: Run, table: str) -> None:
    assert old.manifest["schema_version"] == 3
    assert len(getattr(old, table))


def test_numbers_of_schema_3_are_read_as_they_were_written(old: Run) -> None:
    assert len(old.steps) == old.manifest["steps"] == 60
    top = old.estimates[(old.estimates["measure"] == "lambda_max") & (old.estimates["step"] == 60)]
    assert float(top["value"].iloc[0]) == pytest.approx(LAMBDA_MAX, rel=1e-12)


@pytest.mark.parametrize("kind", ["overview", "sharpness", "spectral_entropy", "flatness", "dynamics"])
@pytest.mark.parametrize("format", ["text", "json", "html"])
def test_every_report_reads_schema_3(old: Run, kind: str, format: str) -> None:
    report = getattr(reports, kind)([old])
    assert any(len(table.rows) for table in report.tables)
    assert "run_schema_3" in reports.render(report, format)
