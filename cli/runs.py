"""`lossscope runs`: which runs a folder holds and how each stands."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import typer

from lossscope.cli.options import JsonOption, RunsFolder

__all__ = ["runs"]

_FOLDER: Final = Path("runs")


def runs(folder: RunsFolder = _FOLDER, as_json: JsonOption = False) -> None:
    """List the runs in a folder: arm, status, steps, last loss, test accuracy, and where each ends.

    Example: lossscope runs runs/demo --json
    """
    import json

    from lossscope.landscape.run import open_runs
    from lossscope.reports.json_format import table_object
    from lossscope.reports.run_list import run_list
    from lossscope.reports.text import table_text

    found = [run for place in _places(folder) for run in open_runs(place)]
    table = run_list(found, folder)
    if as_json:
        typer.echo(
            json.dumps({"schema": 1, "folder": str(folder), **table_object(table)}, ensure_ascii=False, indent=2)
        )
    else:
        typer.echo(table_text(table), nl=False)


def _places(folder: Path) -> list[Path]:
    """The folder, and the folders inside it that hold runs: a demo, an ablation."""
    inside = sorted({manifest.parent.parent for manifest in folder.glob("*/*/run.json")})
    direct = any(folder.glob("*/run.json")) or (folder / "run.json").exists()
    return [folder, *inside] if direct or not inside else inside
