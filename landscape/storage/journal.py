"""The journal of one recording session: rows appended to Arrow IPC streams, never changing a byte once written.

Order across tables. A flush writes one record batch per table that has rows, `steps` last. So whatever step the
steps table shows, every other row handed in before that flush is on file too; the other tables may be ahead of
it. `probes` comes after `densities` for the same reason. A reader that looks at the tables in the opposite order keeps
this for a run that is still being recorded.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.row_codec import Cells, cells, record_batch
from lossscope.landscape.storage.schema import arrow_schema
from lossscope.landscape.storage.segment import BLANK_SEAL, SEGMENT_NAME, sealed

__all__ = ["FLUSH_SECONDS", "JOURNAL", "WRITE_ORDER", "Journal", "segment_paths"]

JOURNAL: Final = "journal"
FLUSH_SECONDS: Final = 1.0
WRITE_ORDER: Final = ("tensors", "spectra", "pairs", "densities", "probes", "steps")


class Journal:
    """The segments of one session; each is made when its table gets its first row.

    Args:
        folder: The run's folder.
        session: The number of this recording session, from 1.
        segment: The number in the names of its files; larger than any that was ever used in this run.
        resumed_at: The step this session goes on from; None for the first.
    """

    def __init__(self, folder: Path, session: int, segment: int, resumed_at: int | None = None) -> None:
        self._folder = folder / JOURNAL
        self._origin = {"session": str(session)} | ({} if resumed_at is None else {"resumed_at": str(resumed_at)})
        self._segment = segment
        self._pending: dict[str, list[Cells]] = {table: [] for table in WRITE_ORDER}
        self._writers: dict[str, _SegmentWriter] = {}
        self._flushed = float("-inf")
        self._process = os.getpid()

    def append(self, table: str, row: Mapping[str, object]) -> None:
        """Take a row; it is on file after the next flush.

        Raises:
            ValueError: The row does not fit the table.
        """
        values = cells(table, row)
        self._pending[table].append(values)

    def flush_if_due(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Flush if that many seconds have passed since the last time, or if there was none; whether it did."""
        due = time.monotonic() - self._flushed >= seconds
        if due:
            self.flush()
        return due

    def flush(self) -> None:
        """Hand all rows to the operating system, so that they outlive this process.

        A forked child writes nothing: the rows are its parent's.

        Raises:
            RunError: The disk is full or gone. The rows stay in memory, and the next flush begins a new segment.
        """
        if os.getpid() != self._process:
            return
        for table in WRITE_ORDER:
            if self._pending[table]:
                self._write(table)
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Close the files without writing anything."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _write(self, table: str) -> None:
        """Write a table's rows; the first of them make its segment."""
        batch = record_batch(table, self._pending[table])
        try:
            if table not in self._writers:
                self._writers[table] = self._new_segment(table)
            self._writers[table].write(batch)
        except OSError as error:
            broken = self._writers.pop(table, None)
            if broken is not None:
                broken.close()
            raise RunError(
                f"cannot write into {self._folder}: {error.strerror}; make room, nothing is lost yet"
            ) from error
        self._pending[table].clear()

    def _new_segment(self, table: str) -> _SegmentWriter:
        """A segment under a name that no file has: usually the session's, a later one after a failed write."""
        self._folder.mkdir(exist_ok=True)
        number = max([self._segment, *(n + 1 for name, n, _ in segment_paths(self._folder.parent) if name == table)])
        return _SegmentWriter(self._folder / f"{table}-{number:06d}.arrows", table, self._origin)


def segment_paths(folder: Path) -> list[tuple[str, int, Path]]:
    """Table, number and path of every segment in a run's journal, by number; other files are left alone."""
    found = []
    journal = folder / JOURNAL
    for path in journal.iterdir() if journal.is_dir() else ():
        match = SEGMENT_NAME.fullmatch(path.name)
        if match:
            found.append((match[1], int(match[2]), path))
    return sorted(found, key=lambda one: (one[1], one[2].name))


class _SegmentWriter:
    """One new file, opened so that no existing one can be touched, and written message by message."""

    def __init__(self, path: Path, table: str, origin: Mapping[str, str]) -> None:
        schema = arrow_schema(table)
        metadata = {**schema.metadata, **origin, "seal": BLANK_SEAL}
        self._stream = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._stream, schema.with_metadata(metadata))
        self._file = path.open("xb", buffering=0)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the batch as one sealed message, after the sealed header the first time."""
        self._writer.write_batch(batch, custom_metadata={"seal": BLANK_SEAL})
        messages = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        rest = memoryview(b"".join(sealed(message) for message in _messages(messages)))
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Close the file as it is; a stream needs no end mark to be read."""
        self._file.close()


def _messages(data: bytes) -> Iterator[bytes]:
    """The Arrow messages in a stretch of a stream."""
    reader = pa.BufferReader(data)
    while (start := reader.tell()) < len(data):
        pa.ipc.read_message(reader)
        yield data[start : reader.tell()]
