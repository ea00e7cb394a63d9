"""`lossscope runs`: which runs a folder holds and how each stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from lossscope.cli.options import JsonOption, RunsFolder

if TYPE_CHECKING:
    from lossscope.landscape.run import Run
    from lossscope.reports.listings.run_list import Unreadable

__all__ = ["runs"]

_FOLDER: Final = Path("runs")
_MANIFEST: Final = "run.json"


def runs(folder: RunsFolder = _FOLDER, as_json: JsonOption = False) -> None:
    """List the runs in a folder: arm, status, steps, last loss, test accuracy, and where each ends.

    A run that cannot be read is listed as unreadable, with the reason.

    Example: lossscope runs runs/demo --json
    """
    import json

    from lossscope.reports.listings.run_list import run_list
    from lossscope.reports.render.json_format import table_object
    from lossscope.reports.render.text import table_text

    table = run_list(_opened(folder), folder)
    if as_json:
        typer.echo(
            json.dumps({"schema": 1, "folder": str(folder), **table_object(table)}, ensure_ascii=False, indent=2)
        )
    else:
        typer.echo(table_text(table), nl=False)


def _opened(folder: Path) -> Sequence[Run | Unreadable]:
    """The run itself, or every run below the folder; only a path without any run in it, or to a bad one, raises."""
    from lossscope.landscape.run import open_runs

    inside = _run_folders(folder)
    if inside and not (folder / _MANIFEST).exists():
        return [_tried(one) for one in inside]
    return open_runs(folder)


def _run_folders(folder: Path) -> list[Path]:
    """The runs directly inside the folder, then those one folder deeper (a demo, an ablation); hidden ones left out."""
    patterns = (f"*/{_MANIFEST}", f"*/*/{_MANIFEST}")
    found = [path.parent for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
    return [one for one in found if not any(part.startswith(".") for part in one.relative_to(folder).parts)]


def _tried(path: Path) -> Run | Unreadable:
    """The run, or what to say in its row: one bad run hides no other."""
    from lossscope.landscape.errors import RunError
    from lossscope.landscape.run import Run
    from lossscope.reports.listings.run_list import Unreadable

    try:
        return Run.open(path)
    except RunError as error:
        return Unreadable(path, " ".join(str(error).split()))
