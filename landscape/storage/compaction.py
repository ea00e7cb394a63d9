"""Compaction of the journal into Parquet. A crash at any point neither loses nor duplicates a row.

Each table's Parquet file is written under a temporary name and renamed; only then are the segments it contains
removed. The Parquet file lists those segments, so a reader skips them between the rename and the removal.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Final

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.files import folder_entries, temporary_files
from lossscope.landscape.storage.journal import JOURNAL, segment_paths
from lossscope.landscape.storage.manifest import MANIFEST
from lossscope.landscape.storage.parquet import CompactedTable, parquet_path, read_parquet, write_parquet
from lossscope.landscape.storage.run_tables import RunTables
from lossscope.landscape.storage.schema import TABLES

__all__ = ["CHECKPOINTS", "UNFINISHED", "compact", "unused_segment"]

CHECKPOINTS: Final = "checkpoints"
UNFINISHED: Final = ".step-"  # begins the name of a checkpoint's folder until it is complete


def compact(folder: Path, run: str | None) -> None:
    """Move all rows of a run into Parquet files. The caller must hold the run's lock.

    If any segment is corrupted, nothing is moved: it may decide which rows of the other tables are superseded.

    Args:
        folder: The run's folder.
        run: The identity of the run; None for runs recorded before they had one.

    Raises:
        RunError: A file is corrupted or cannot be written; every row stays where it is.
    """
    _remove_temporary_files(folder)
    tables = RunTables(folder, run)
    for table in TABLES:
        for segment in tables.segments(table):
            if segment.problem:
                raise RunError(segment.problem)
    tables.sessions()
    for table in TABLES:
        _compact_table(folder, table, tables)
    with contextlib.suppress(OSError):
        (folder / JOURNAL).rmdir()  # fails, as it should, while the folder contains other files


def unused_segment(folder: Path, run: str | None) -> int:
    """Return a segment number that no file of the run has or had.

    Numbers of removed segments must not be reused: a reader skips every name that a Parquet file lists.
    """
    numbers = [number for _, number, _ in segment_paths(folder)]
    for table in TABLES:
        compacted = read_parquet(folder, table, run, rows=False)
        names = compacted.segments if compacted else frozenset()
        numbers += [int(name.removesuffix(".arrows").rsplit("-", 1)[1]) for name in names]
    return max(numbers, default=0) + 1


def _compact_table(folder: Path, table: str, tables: RunTables) -> None:
    """Compact one table, unless it has neither new nor newly superseded rows."""
    before = read_parquet(folder, table, tables.run, rows=False)
    new = tables.segments(table)
    done = before.segments if before else frozenset()
    if new or (before and before.sessions != tables.sessions()):
        names = done | {segment.path.name for segment in new}
        write_parquet(folder, table, CompactedTable(tables.rows(table), names, tables.sessions()), tables.run)
        done = names
    for found, _, path in segment_paths(folder):
        if found == table and path.name in done:
            with contextlib.suppress(OSError):  # readers skip a remaining segment; the next compaction removes it
                path.unlink()


def _remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of tables, manifest and checkpoints that killed processes left."""
    left = [one for table in TABLES for one in temporary_files(parquet_path(folder, table))]
    left += temporary_files(folder / MANIFEST)
    for aside in left:
        with contextlib.suppress(OSError):
            aside.unlink()
    with contextlib.suppress(RunError):  # something else took the place of the folder of checkpoints
        for aside in folder_entries(folder / CHECKPOINTS):
            if aside.name.startswith(UNFINISHED):
                shutil.rmtree(aside, ignore_errors=True)
