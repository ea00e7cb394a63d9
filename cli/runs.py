"""`lossscope runs`: list the runs in a folder with their status and last results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lossscope.cli.options import JsonOption, RunsFolder
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.run import Run
    from lossscope.reports.listings.run_list import Unreadable

__all__ = ["runs"]

_FOLDER: Final = Path("runs")


def runs(folder: RunsFolder = _FOLDER, as_json: JsonOption = False) -> None:
    """List the runs in a folder: arm, status, steps, last loss, test accuracy, and where each ends.

    A run that cannot be read is listed as unreadable, with the reason.

    Example: lossscope runs runs/demo --json
    """
    import json

    from lossscope.reports.listings.run_list import run_alert, run_list
    from lossscope.reports.render.json_format import table_object
    from lossscope.reports.render.text import table_text

    found = _opened(folder)
    table, alert = run_list(found, folder), run_alert(found, folder)
    if as_json:
        content = {"schema": 1, "folder": str(folder), "alert": alert, **table_object(table)}
        echo(json.dumps(content, ensure_ascii=False, indent=2), format="json")
    else:
        echo((f"{alert}\n\n" if alert else "") + table_text(table, text_width()))


def _opened(folder: Path) -> Sequence[Run | Unreadable]:
    """Open the runs that `report` would read; a run below the folder that cannot be opened becomes a row."""
    from lossscope.landscape.run import Run, run_folders

    found = run_folders(folder)
    return [Run.open(folder)] if found == [folder] else [_open_or_explain(one) for one in found]


def _open_or_explain(path: Path) -> Run | Unreadable:
    """Return the run, or the reason why it cannot be opened, so that one bad run hides no other."""
    from lossscope.landscape.errors import RunError
    from lossscope.landscape.run import Run
    from lossscope.reports.listings.run_list import Unreadable

    try:
        return Run.open(path)
    except RunError as error:
        return Unreadable(path, " ".join(str(error).split()))
