"""Snapshot of a run's tables, read from Parquet files and journal.

A resumed run repeats steps that an earlier session may have recorded already. The rule: a row of an earlier session
whose step is beyond the step at which a later session resumed is superseded, provided that the later session has at
least one row in any table. So a session that died before it wrote a row supersedes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.journal import JOURNAL, WRITE_ORDER, segment_paths
from lossscope.landscape.storage.parquet import CompactedTable, parquet_path, read_parquet
from lossscope.landscape.storage.plain_arrays import steps_of
from lossscope.landscape.storage.schema import TABLES, arrow_schema
from lossscope.landscape.storage.segment import LARGEST_TABLE, Segment, read_segment

__all__ = ["RunTables"]

_ATTEMPTS: Final = 20
_NO_LIMIT: Final = 2**62  # larger than any step


class RunTables:
    """A snapshot of a run's tables. Tables are read on first use; nothing is written.

    The length of every segment is noted at the start, `steps` first, and no byte beyond it is read later. Segments
    only grow, so this is a consistent state of a live run. Only a compaction removes segments; if one happens in
    between, a new snapshot is taken.

    Args:
        folder: The run's folder; a relative path is resolved now.
        run: The identity of the run, which all its files must have; None for runs recorded before they had one.
    """

    def __init__(self, folder: Path, run: str | None) -> None:
        self.folder = folder.absolute()
        self.run = run
        self._sizes: dict[str, dict[Path, int]] = {}
        self._numbers: set[int] = set()
        self._cache: dict[Path, Segment] = {}
        self._sessions: dict[int, int | None] | None = None
        self._take()

    def rows(self, table: str, names: Collection[str] | None = None, *, since: int | None = None) -> pa.Table:
        """Return the rows of a table that are not superseded, ordered by step, ties in the order written.

        Args:
            table: A key of `TABLES`.
            names: Columns to read, and to check for damage; `step` is always read. None for all.
            since: The first step of the rows; of earlier ones little but the steps is read. None for all rows.

        Raises:
            RunError: A file of the table is corrupted.
        """
        names = None if names is None else {"step", *names}
        for _ in range(_ATTEMPTS):
            try:
                return self._rows(table, names, since)
            except FileNotFoundError:  # compacted since the snapshot
                self._take()
        raise RunError(f"the journal of {self.folder} changes faster than it can be read: try again")

    def segments(self, table: str) -> list[Segment]:
        """Return the table's segments that are not in its Parquet file yet, oldest first."""
        return self._not_in(read_parquet(self.folder, table, self.run, rows=False), table)

    def _not_in(self, compacted: CompactedTable | None, table: str) -> list[Segment]:
        """Return the table's segments that a Parquet file does not contain."""
        done = compacted.segments if compacted else frozenset()
        return [self._segment(path) for path in self._sizes[table] if path.name not in done]

    def sessions(self) -> dict[int, int | None]:
        """Return the sessions that have rows in any table, with the step each resumed at (None for the first)."""
        if self._sessions is None:
            found: dict[int, int | None] = {}
            for table in TABLES:
                compacted = read_parquet(self.folder, table, self.run, rows=False)
                found |= compacted.sessions if compacted else {}
                for segment in self.segments(table):
                    if segment.session is not None and len(segment.rows):
                        found[segment.session] = segment.resumed_at
            self._sessions = found
        return self._sessions

    def _take(self) -> None:
        """Take the snapshot: note the segments and their lengths."""
        self._numbers.clear()
        self._cache.clear()
        self._sessions = None
        for table in reversed(WRITE_ORDER):
            found = [(number, path) for name, number, path in segment_paths(self.folder) if name == table]
            self._sizes[table] = {path: _size(path) for _, path in found}
            self._numbers.update(number for number, _ in found)

    def _rows(self, table: str, names: Collection[str] | None, since: int | None) -> pa.Table:
        """Read a table once, without retrying."""
        compacted = read_parquet(self.folder, table, self.run, names=names, since=since)
        self._check_size(table)
        segments = self._not_in(compacted, table)
        for segment in segments:
            if segment.problem:
                raise RunError(segment.problem)
        pieces = [self._current(compacted.rows, max(compacted.sessions, default=0))] if compacted else []
        schema = arrow_schema(table, names)
        pieces += [
            self._current(segment.rows.select(schema.names), segment.session)
            for segment in segments
            if segment.session is not None
        ]
        found = _by_step(pa.concat_tables(pieces or [schema.empty_table()]))
        return found if since is None else found.slice(int(np.searchsorted(steps_of(found), since)))

    def _check_size(self, table: str) -> None:
        """Raise RunError if the segments of a table are together too large to read."""
        size = sum(self._sizes[table].values())
        if size > LARGEST_TABLE:
            raise RunError(
                f"the segments of {table} in {self.folder / JOURNAL} have {size:,} bytes, at most {LARGEST_TABLE:,} "
                "are read: move some out of journal/ to read the rest"
            )

    def _current(self, rows: pa.Table, session: int) -> pa.Table:
        """Return the rows of a session, or of all sessions up to it, that no later session superseded."""
        compacted = any(os.path.exists(parquet_path(self.folder, table)) for table in TABLES)
        if len(self._numbers) + compacted <= 1:
            return rows  # a single session: no need to read the other tables
        later = [at for other, at in self.sessions().items() if other > session and at is not None]
        steps = steps_of(rows)
        return rows.filter(pa.array(steps <= min(later, default=_NO_LIMIT)))

    def _segment(self, path: Path) -> Segment:
        """Return a segment up to its length at the snapshot."""
        if path not in self._cache:
            size = next(sizes[path] for sizes in self._sizes.values() if path in sizes)
            self._cache[path] = read_segment(path, size, self.run)
        return self._cache[path]


def _size(path: Path) -> int:
    """Return the length of a file in bytes; 0 for one that is gone or leads nowhere (reading it says so later)."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _by_step(rows: pa.Table) -> pa.Table:
    """Return the rows sorted by step; rows of equal steps keep their order."""
    steps = steps_of(rows)
    return rows if (np.diff(steps) >= 0).all() else rows.take(np.argsort(steps, kind="stable"))
