"""All reports on one page: nothing of any report is lost, and nothing stands twice."""

from __future__ import annotations

from lossscope.landscape.run import Run
from lossscope.reports import dynamics, flatness, overview, render, sharpness, spectral_entropy
from lossscope.reports.shared.merged import merged

PAGES = (overview, sharpness, spectral_entropy, flatness, dynamics)


def test_every_table_figure_and_finding_stands_once(demo_runs: list[Run]) -> None:
    reports = [page(demo_runs) for page in PAGES]
    whole = merged(reports)
    for one in reports:
        for table in one.tables:  # as it is, or as a part of a table with the same columns
            assert any(
                table.columns == other.columns and table.note == other.note and set(table.rows) <= set(other.rows)
                for other in whole.tables
            )
        assert {figure.key for figure in one.figures} <= {figure.key for figure in whole.figures}
        assert set(one.findings) <= set(whole.findings)
        assert set(one.missing) <= set(whole.missing)
    for some in (whole.tables, whole.figures):
        keys = [one.key for one in some]
        assert len(keys) == len(set(keys))
    assert len(whole.notes) == len(set(whole.notes))
    assert whole.summary == reports[0].summary


def test_it_renders_in_every_format(demo_runs: list[Run]) -> None:
    whole = merged([page(demo_runs) for page in PAGES])
    for format in ("text", "json", "markdown", "html"):
        assert "All reports" in render(whole, format)
