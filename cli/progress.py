"""A progress bar with the time left, on stderr, silent in pipes and for anything shorter than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["progress_bar"]

_PATIENCE: Final = 2.0  # seconds before a bar appears


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, float | str], None]]:
    """Return a callback for the step, the number of steps and the loss, or a word; it draws on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda step, steps, said: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(label, said="")
    started, shown = time.perf_counter(), False

    def advance(step: int, steps: int, said: float | str) -> None:
        nonlocal shown
        words = said if isinstance(said, str) else f"loss {said:.4g}"
        bar.update(task, completed=step, total=steps, said=words)
        if not shown and time.perf_counter() - started > _PATIENCE:
            bar.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
