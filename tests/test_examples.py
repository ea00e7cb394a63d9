"""The examples run as they stand, are short, and leave a figure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_without_a_warning_and_leaves_its_figure(example: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(example)]
    ignored = "-W", "ignore::DeprecationWarning:torch"
    found = subprocess.run(
        [*command[:1], *ignored, *command[1:]], cwd=tmp_path, capture_output=True, text=True, env=os.environ.copy()
    )
    assert found.returncode == 0, found.stderr
    (picture,) = tmp_path.glob("*.png")
    assert picture.stem == example.stem
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_under_forty_lines(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 40
