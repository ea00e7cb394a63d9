"""`lossscope export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from lossscope.cli.export import export
from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.run import Run

app = typer.Typer()
app.command()(export)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_the_files_are_written_and_printed(write_run: Callable[..., Run], tmp_path: Path) -> None:
    write_run("a")
    found = invoke(tmp_path / "a", "--output", tmp_path / "out", "--format", "jsonl")
    assert found.exit_code == 0
    assert found.stdout == f"{tmp_path / 'out' / 'a.jsonl'}\n"
    assert all(json.loads(line)["_step"] >= 0 for line in (tmp_path / "out" / "a.jsonl").read_text().splitlines())


def test_files_that_exist_are_refused(write_run: Callable[..., Run], tmp_path: Path) -> None:
    write_run("a")
    invoke(tmp_path / "a", "--output", tmp_path / "out")
    with pytest.raises(LandscapeError, match="add --force"):
        invoke(tmp_path / "a", "--output", tmp_path / "out")
    assert invoke(tmp_path / "a", "--output", tmp_path / "out", "--force").exit_code == 0
