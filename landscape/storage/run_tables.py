"""The rows of a run folder as they stood at one moment, from Parquet files and journal alike.

A resumed run repeats steps that its earlier session may have recorded already. The rule: a row of an earlier session
whose step lies beyond the step at which a later session resumed is superseded, provided that the later session has
at least one row in any table. So a session that died before it wrote anything supersedes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.journal import WRITE_ORDER, segment_paths
from lossscope.landscape.storage.parquet import CompactedTable, parquet_path, read_parquet
from lossscope.landscape.storage.schema import TABLES, arrow_schema
from lossscope.landscape.storage.segment import Segment, read_segment

__all__ = ["RunTables"]

_ATTEMPTS: Final = 20
_UNSEEN: Final = 2**62


class RunTables:
    """A snapshot of a run's tables; nothing is read before it is asked for, and nothing is ever written.

    The length of every segment is taken at the start, `steps` first, and no byte beyond it is read later. Since
    segments only grow, that is a consistent moment of a live run. Only a compaction in between removes segments;
    then a new snapshot is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sizes: dict[str, dict[Path, int]] = {}
        self._numbers: set[int] = set()
        self._cache: dict[Path, Segment] = {}
        self._sessions: dict[int, int | None] | None = None
        self._take()

    def rows(self, table: str) -> pa.Table:
        """All rows of a table that no later session superseded, ordered by step, ties in the order written.

        Raises:
            RunError: A file of the table is garbled.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._rows(table)
            except FileNotFoundError:  # compacted since the snapshot
                self._take()
        raise RunError(f"the journal of {self.folder} changes faster than it can be read: try again")

    def segments(self, table: str) -> list[Segment]:
        """The table's segments that are not in its Parquet file yet, oldest first."""
        compacted = read_parquet(self.folder, table, rows=False)
        done = compacted.segments if compacted else frozenset()
        return [self._segment(path) for path in self._sizes[table] if path.name not in done]

    def sessions(self) -> dict[int, int | None]:
        """Every session that has rows in any table, with the step it resumed at (None for the first)."""
        if self._sessions is None:
            found: dict[int, int | None] = {}
            for table in TABLES:
                compacted = read_parquet(self.folder, table, rows=False)
                found |= compacted.sessions if compacted else {}
                for segment in self.segments(table):
                    if segment.session is not None and len(segment.rows):
                        found[segment.session] = segment.resumed_at
            self._sessions = found
        return self._sessions

    def _take(self) -> None:
        """Note which segments there are and how long they are."""
        self._numbers.clear()
        self._cache.clear()
        self._sessions = None
        for table in reversed(WRITE_ORDER):
            found = [(number, path) for name, number, path in segment_paths(self.folder) if name == table]
            self._sizes[table] = {path: _size(path) for _, path in found}
            self._numbers.update(number for number, _ in found)

    def _rows(self, table: str) -> pa.Table:
        """One attempt at `rows`."""
        compacted = read_parquet(self.folder, table)
        segments = self.segments(table)
        for segment in segments:
            if segment.problem:
                raise RunError(segment.problem)
        pieces = [self._lasting(compacted)] if compacted else []
        pieces += [self._kept(segment.rows, segment.session) for segment in segments if segment.session is not None]
        return _by_step(pa.concat_tables([arrow_schema(table).empty_table(), *pieces]))

    def _lasting(self, compacted: CompactedTable) -> pa.Table:
        """The Parquet file's rows that no session since then superseded."""
        return self._kept(compacted.rows, max(compacted.sessions, default=0))

    def _kept(self, rows: pa.Table, session: int) -> pa.Table:
        """The rows of a session that no later one superseded."""
        compacted = any(parquet_path(self.folder, table).exists() for table in TABLES)
        if len(self._numbers) + compacted <= 1:
            return rows  # a single session: spare reading the other tables
        later = [at for other, at in self.sessions().items() if other > session and at is not None]
        steps = rows["step"].to_numpy()
        return rows.filter(pa.array(steps <= min(later, default=_UNSEEN)))

    def _segment(self, path: Path) -> Segment:
        """A segment as long as it was at the snapshot."""
        if path not in self._cache:
            size = next(sizes[path] for sizes in self._sizes.values() if path in sizes)
            self._cache[path] = read_segment(path, size)
        return self._cache[path]


def _size(path: Path) -> int:
    """The length of a file in bytes; 0 for one that is gone (reading it will notice)."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _by_step(rows: pa.Table) -> pa.Table:
    """The rows in the order of their steps; equal steps keep their order."""
    return rows.take(np.argsort(rows["step"].to_numpy(), kind="stable"))
