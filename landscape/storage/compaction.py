"""From journal to Parquet, so that a crash at any point loses nothing and doubles nothing.

Each table's rows are written aside, renamed, and only then are the segments removed that went into them. The Parquet
file names those segments itself, so between the rename and the removal a reader skips them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.journal import JOURNAL, segment_paths
from lossscope.landscape.storage.manifest import MANIFEST
from lossscope.landscape.storage.parquet import CompactedTable, parquet_path, read_parquet, write_parquet
from lossscope.landscape.storage.run_tables import RunTables
from lossscope.landscape.storage.schema import TABLES

__all__ = ["compact", "unused_segment"]


def compact(folder: Path) -> None:
    """Move all rows of a run into Parquet files. Only the holder of the run's lock may call it.

    Where any segment is garbled nothing is moved: which rows of the other tables are superseded may depend on it.

    Raises:
        RunError: A file is garbled or cannot be written; every row is where it was.
    """
    _remove_asides(folder)
    tables = RunTables(folder)
    for table in TABLES:
        for segment in tables.segments(table):
            if segment.problem:
                raise RunError(segment.problem)
    tables.sessions()
    for table in TABLES:
        _compact_table(folder, table, tables)
    with contextlib.suppress(OSError):
        (folder / JOURNAL).rmdir()  # stays while anything else lies in it


def unused_segment(folder: Path) -> int:
    """A segment number that no file of the run has or had.

    The numbers of removed segments count too: a reader skips every name that a Parquet file lists.
    """
    numbers = [number for _, number, _ in segment_paths(folder)]
    for table in TABLES:
        compacted = read_parquet(folder, table, rows=False)
        names = compacted.segments if compacted else frozenset()
        numbers += [int(name.removesuffix(".arrows").rsplit("-", 1)[1]) for name in names]
    return max(numbers, default=0) + 1


def _compact_table(folder: Path, table: str, tables: RunTables) -> None:
    """Compact one table; one without new rows or newly superseded ones is left alone."""
    before = read_parquet(folder, table, rows=False)
    new = tables.segments(table)
    done = before.segments if before else frozenset()
    if new or (before and before.sessions != tables.sessions()):
        names = done | {segment.path.name for segment in new}
        write_parquet(folder, table, CompactedTable(tables.rows(table), names, tables.sessions()))
        done = names
    for found, _, path in segment_paths(folder):
        if found == table and path.name in done:
            with contextlib.suppress(OSError):  # one that stays is skipped by readers and removed next time
                path.unlink()


def _remove_asides(folder: Path) -> None:
    """Remove what a crash in the middle of writing aside has left."""
    for path in [folder / MANIFEST, *(parquet_path(folder, table) for table in TABLES)]:
        for aside in folder.glob(f".{path.name}.tmp-*"):
            with contextlib.suppress(OSError):
                aside.unlink()
