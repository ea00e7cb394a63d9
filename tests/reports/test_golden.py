"""Golden files: the reports of one synthetic run as text, JSON and Markdown.

After a change that is meant, write them again: `python -m pytest tests/reports/test_golden.py --golden`, and read what
changed. Numbers of JSON have six digits there, as the last ones depend on the processor; that equal data gives equal
bytes on one is tested in render/test_rendering.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from whole_run import whole_run

from lossscope import reports
from lossscope.reports.render.rendering import Format

FOLDER = Path(__file__).parents[1] / "data" / "golden"
PAGES = ("overview", "sharpness", "spectral_entropy", "flatness", "dynamics")
ENDINGS: dict[Format, str] = {"text": "txt", "json": "json", "markdown": "md"}


def in_lines(text: str) -> str:
    """Return JSON with an entry a line and numbers of six digits."""
    found = json.loads(text, parse_float=lambda number: float(f"{float(number):.6g}"))
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_a_report_is_that_of_the_golden_file(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    report = getattr(reports, page)([whole_run(tmp_path / "run")])
    for format, ending in ENDINGS.items():
        file, made = FOLDER / f"{page}.{ending}", reports.render(report, format, width=100)
        made = in_lines(made) if format == "json" else made
        if request.config.getoption("--golden"):
            file.write_text(made)
        assert made == file.read_text(), f"{file.name} is another one: see the top of {Path(__file__).name}"
