"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lossscope.landscape.run import Run

ROOT = Path(__file__).parents[1]


def test_the_readme_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"<!-- tested by tests/test_readme.py -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    assert len(blocks) == 4
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    mine, curved = Run.open("runs/mine"), Run.open("runs/curved")
    assert (len(mine.steps), len(curved.steps)) == (20, 20)
    assert len(mine.probes) == 0
    assert "lambda_max" in set(curved.probes["measure"])
    assert len(scope["shapes"]) == 20  # type: ignore[arg-type]


def test_recording_takes_two_more_lines_than_not_recording() -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.S)
    assert block is not None
    lines = [line for line in block.group(1).splitlines() if "recorder" in line and "import" not in line]
    assert [line.strip().split("(")[0] for line in lines] == ["recorder = Recorder", "recorder.step", "recorder.close"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`([\w./-]+/[\w./-]*\.?\w*)`", (ROOT / page).read_text())
    for name in {name for name in named if not name.startswith("runs/")}:
        assert (ROOT / name).exists(), f"{page} names {name}"
