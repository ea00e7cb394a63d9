"""Reports of many runs in the terminal: few lines, what is wrong stays, what is left out is counted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lossscope.cli.main import app
from lossscope.landscape.run import Run
from lossscope.reports import overview, render, sharpness
from lossscope.reports.content import Finding, Table
from lossscope.reports.shared import condensed as module
from lossscope.reports.shared.condensed import MANY, condensed


def many(folder: Path, run: Run, arms: int, seeds: int) -> Path:
    """Write copies of a run as seeds of several arms."""
    for arm in range(arms):
        for seed in range(seeds):
            path = Path(shutil.copytree(run.path, folder / f"arm-{arm}-s{seed}"))
            facts = json.loads((path / "run.json").read_text())
            seeds_of = {"init": seed, "split": 0, "order": seed}
            (path / "run.json").write_text(json.dumps({**facts, "arm": f"arm-{arm}", "seeds": seeds_of}))
    return folder


def text(*paths: object) -> str:
    found = CliRunner().invoke(app, ["report", *map(str, paths)], catch_exceptions=False)
    assert found.exit_code == 0
    return found.output


def test_a_report_of_few_runs_is_as_it_was(demo_runs: list[Run]) -> None:
    report = overview(demo_runs)
    assert condensed(report, MANY) is report
    assert condensed(report, MANY + 1) != report


def test_many_arms_are_one_table_with_what_the_overview_says_of_them(demo_runs: list[Run]) -> None:
    report = overview(demo_runs)
    (table,) = condensed(report, 100).tables
    summary = next(one for one in report.tables if one.key == "summary")
    assert [row[0] for row in table.rows] == [column.title for column in summary.columns[2:]]
    for place, row in enumerate(table.rows, start=2):
        for column, cell in list(zip(table.columns, row, strict=True))[1:]:
            assert cell == next(one[place] for one in summary.rows if one[0] == column.title)
    assert len(table.columns) == 6
    assert "seeds" in [column.title for column in table.columns]


def test_alerts_statements_and_what_does_not_hold_stay(demo_runs: list[Run]) -> None:
    wrong = [Finding(f"claim {count}", False, "numbers", "source") for count in range(5)]
    report = overview(demo_runs)
    report = replace(report, alert="one diverged", findings=(*report.findings, *wrong))
    found = condensed(report, 100)
    assert (found.alert, found.summary, found.title) == ("one diverged", report.summary, report.title)
    assert [one.claim for one in found.findings] == ["claim 0", "claim 1", "claim 2"]
    (note,) = found.notes
    kept = len(report.findings) - 3
    assert f"This text of 100 runs is cut: {kept} findings, {len(report.tables) - 1} tables" in note
    assert f"{len(report.figures)} figures" in note


def test_rows_beyond_the_tenth_are_counted(demo_runs: list[Run]) -> None:
    report = sharpness(demo_runs)
    first = next(table for table in report.tables if not table.opens)
    long = replace(report, tables=(Table("empty", "", (), ()), replace(first, rows=first.rows[:1] * 25)))
    found = condensed(long, 100)
    assert [len(table.rows) for table in found.tables] == [10]
    assert "15 rows" in found.notes[0]
    assert condensed(replace(report, tables=()), 100).tables == ()


def test_the_text_of_many_runs_is_short_and_other_formats_are_whole(
    demo_runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY", 5)
    folder = many(tmp_path / "many", demo_runs[2], 6, 1)
    short = text("overview", folder)
    assert len(short.splitlines()) < 60
    assert "This text of 6 runs is cut" in short
    assert "Figures in numbers" not in short
    assert "Provenance" not in short
    assert json.loads(text("overview", folder, "--format", "json"))["provenance"]["rows"]
    assert "is cut" not in text("sharpness", demo_runs[0].path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["overview", "sharpness", "entropy", "flatness", "dynamics", "all"])
def test_a_hundred_runs_are_less_than_sixty_lines(kind: str, demo_runs: list[Run], tmp_path: Path) -> None:
    folder = many(tmp_path / "many", demo_runs[2], 10, 10)
    assert len(text(kind, folder).splitlines()) < 60


def test_a_report_without_figures_and_provenance_has_no_heading_of_them(demo_runs: list[Run]) -> None:
    words = render(condensed(overview(demo_runs), 100), "text")
    assert "Figures in numbers" not in words
    assert "Provenance" not in words
