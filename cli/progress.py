"""Progress bar with the remaining time on stderr. Silent in pipes and for the first two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from lossscope.cli.terminal import SafeStream, safe_text

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["progress_bar"]

_DELAY: Final = 2.0  # seconds before the bar appears


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, float | str], None]]:
    """Return a callback for the step, the number of steps, and the loss or a text. It draws on a terminal only."""
    stream = sys.stderr.original if isinstance(sys.stderr, SafeStream) else sys.stderr
    if stream is None or not stream.isatty():
        yield lambda step, steps, status: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    bar = Progress(*columns, console=Console(file=stream), transient=True)
    task = bar.add_task(safe_text(label, stream), status="")
    started, shown = time.perf_counter(), False

    def advance(step: int, steps: int, status: float | str) -> None:
        """Update the bar."""
        nonlocal shown
        words = status if isinstance(status, str) else f"loss {status:.4g}"
        bar.update(task, completed=step, total=steps, status=safe_text(words, stream))
        if not shown and time.perf_counter() - started > _DELAY:
            bar.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
