"""Runs as files of other programs: tables as CSV or Parquet, steps as lines of JSON, event files of TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, assert_never

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.export.event_files import event_file, event_file_name
from lossscope.landscape.export.history import history
from lossscope.landscape.storage.files import atomic_write, reason
from lossscope.landscape.storage.schema import TABLES

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["ExportFormat", "export", "named"]

ExportFormat = Literal["csv", "parquet", "jsonl", "tensorboard"]
_KEYS: Final = ("run", "arm")  # columns before those of a table


def export(runs: Sequence[Run], folder: Path, format: ExportFormat, *, force: bool = False) -> list[Path]:
    """Write the tables of runs into a folder.

    Args:
        runs: The runs, at least one.
        folder: Folder of the files; it is made if its parent exists.
        format: `csv` or `parquet` for a file for each table, `jsonl` for a file for each run with a line for each step,
            see `history`, `tensorboard` for a folder for each run with an event file, see `event_file`.
        force: Replace files that exist.

    Returns:
        The files that were written; tables without rows have none.

    Raises:
        LandscapeError: There is no run, a file exists, or the folder cannot be written.
    """
    if not runs:
        raise LandscapeError("no runs to export: give at least one run or a folder of runs")
    contents = _contents(runs, format)
    places = {folder / name: content for name, content in contents.items()}
    taken = [path for path in places if path.exists()]
    if taken and not force:
        raise LandscapeError(f"{taken[0]} exists; add --force to replace it, or choose another --output")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise LandscapeError(f"--output {folder}: {reason(error)}; choose another folder") from error
    for path, content in places.items():
        made = content()
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, made)
    return list(places)


def _contents(runs: Sequence[Run], format: ExportFormat) -> dict[str, Callable[[], bytes]]:
    """Return what makes each file, by its path below the folder."""
    match format:
        case "csv" | "parquet":
            return _tables(runs, format)
        case "jsonl":
            return {f"{name}.jsonl": lambda run=run: _lines(run) for name, run in named(runs).items()}  # type: ignore[misc]
        case "tensorboard":
            return {
                f"{name}/{event_file_name(run)}": lambda run=run: event_file(run)  # type: ignore[misc]
                for name, run in named(runs).items()
            }
        case _:
            assert_never(format)


def _tables(runs: Sequence[Run], format: Literal["csv", "parquet"]) -> dict[str, Callable[[], bytes]]:
    """Return what makes the file of each table that has rows, by its name."""
    arms = {id(run): arm for arm, members in by_arm(runs).items() for run in members}
    write = _csv if format == "csv" else _parquet
    found: dict[str, Callable[[], bytes]] = {}
    for name in TABLES:
        frame = _joined([(run.name, arms[id(run)], getattr(run, name)) for run in runs])
        if len(frame):
            found[f"{name}.{format}"] = lambda frame=frame: write(frame)  # type: ignore[misc]
    return found


def _joined(parts: Sequence[tuple[str, str, pd.DataFrame]]) -> pd.DataFrame:
    """Return the rows of all runs, with run and arm in front."""
    import pandas as pd

    frames = []
    for run, arm, frame in parts:
        keyed = frame.copy()
        for place, (column, value) in enumerate(zip(_KEYS, (run, arm), strict=True)):
            keyed.insert(place, column, value)
        frames.append(keyed)
    with_rows = [frame for frame in frames if len(frame)]
    return pd.concat(with_rows, ignore_index=True) if with_rows else frames[0]


def _csv(frame: pd.DataFrame) -> bytes:
    """Return rows as CSV: a missing value is empty, a list is JSON."""
    lists = [column for column in frame if frame[column].map(lambda cell: hasattr(cell, "tolist")).any()]
    shown = frame.assign(**{str(column): frame[column].map(_listed) for column in lists})
    return str(shown.to_csv(index=False)).encode()


def _listed(cell: object) -> str | None:
    """Return a list of numbers as JSON, where what is not finite is null."""
    import numpy as np

    if not isinstance(cell, np.ndarray):
        return None
    return json.dumps([float(one) if np.isfinite(one) else None for one in cell])


def _parquet(frame: pd.DataFrame) -> bytes:
    """Return rows as a Parquet file."""
    buffer = BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the runs by name; of equal names the later ones are numbered.

    Args:
        runs: The runs.
    """
    found: dict[str, Run] = {}
    for run in runs:
        name, count = run.name, 1
        while name in found:
            count += 1
            name = f"{run.name}-{count}"
        found[name] = run
    return found


def _lines(run: Run) -> bytes:
    """Return a run as lines of JSON."""
    return "".join(f"{line}\n" for line in history(run)).encode()
