"""The logbook of a claim bundle, read by trackio."""

from __future__ import annotations

from pathlib import Path

import pytest

from lossscope.landscape.export.logbook import logbook

library = pytest.importorskip("trackio.logbook")


def test_trackio_reads_the_logbook_and_makes_its_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in logbook("Claims", [("sync-is-flatter", "SUPPORTED: **0.5**")], "lossscope check").items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    project = library.require_project_dir()
    library.write_site_files(project)
    assert (tmp_path / ".trackio" / "logbook" / "index.html").exists()
    assert [page["slug"] for page in library.list_pages(project)] == ["index", "command", "sync-is-flatter"]
    outline = library.read_page_outline(project, "sync-is-flatter")
    assert "SUPPORTED: **0.5**" in str(outline)
