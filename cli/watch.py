"""`lossscope watch`: follow runs in the terminal while they train."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lossscope.cli.options import RunPaths
from lossscope.cli.report import opened
from lossscope.cli.terminal import SafeStream, echo, safe_text, text_width

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["watch"]


def watch(
    runs: RunPaths,
    every: Annotated[float, typer.Option("--every", min=0.1, metavar="SECONDS", help="Time between two looks.")] = 2.0,
) -> None:
    """Follow runs while they train: status, step, loss and largest Hessian eigenvalue as bars, and their last values.

    It ends when no run is training any more, or with Ctrl-C, which touches no run. Where the output is no terminal the
    table is printed once.

    Example: lossscope watch runs
    """
    stream = sys.stdout.original if isinstance(sys.stdout, SafeStream) else sys.stdout
    if stream is None or not stream.isatty():
        echo(_look(runs)[0])
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with suppress(KeyboardInterrupt), Live(console=Console(file=stream), auto_refresh=False) as live:
        while True:
            words, training = _look(runs)
            live.update(Text(safe_text(words, stream)), refresh=True)
            if not training:
                return
            time.sleep(every)


def _look(paths: Sequence[Path]) -> tuple[str, bool]:
    """Return the table of the runs as text, and True if one is still training."""
    from lossscope.reports.listings.watch_table import watch_table
    from lossscope.reports.render.text import table_text

    found = opened(paths)
    return table_text(watch_table(found), text_width()), any(run.status == "running" for run in found)
