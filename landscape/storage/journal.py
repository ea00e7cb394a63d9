"""Journal of a recording session: append-only Arrow IPC streams, one segment per table.

Order of tables: a flush writes one record batch for each table that has rows, `steps` last. So for every step in the
steps table, all other rows appended before that flush are in their files too; the other tables may be ahead of it.
`probes` is written after `densities` and `curves` for the same reason. A reader that opens the tables in the opposite
order preserves this guarantee while the run is being recorded.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.files import folder_entries
from lossscope.landscape.storage.row_codec import Cells, cells, record_batch
from lossscope.landscape.storage.schema import arrow_schema
from lossscope.landscape.storage.segment import BLANK_SEAL, LARGEST_NUMBER, SEGMENT_NAME, sealed

__all__ = ["FLUSH_SECONDS", "JOURNAL", "WRITE_ORDER", "Journal", "segment_paths"]

JOURNAL: Final = "journal"
FLUSH_SECONDS: Final = 1.0
WRITE_ORDER: Final = ("tensors", "spectra", "pairs", "densities", "curves", "spikes", "probes", "steps")


class Journal:
    """Writer of one session's segments. A segment is created when its table gets its first row.

    Args:
        folder: The run's folder.
        session: The number of this recording session, from 1.
        segment: The number in the segments' file names; larger than any number used before in this run.
        resumed_at: The step at which this session resumes; None for the first session.
        run: The identity of the run, kept in every segment; None for a run that has none.
    """

    def __init__(
        self, folder: Path, session: int, segment: int, resumed_at: int | None = None, run: str | None = None
    ) -> None:
        self._folder = folder / JOURNAL
        self._origin = {"session": str(session)} | ({} if resumed_at is None else {"resumed_at": str(resumed_at)})
        self._origin |= {} if run is None else {"run": run}
        self._segment = segment
        self._largest = segment - 1  # of the numbers used
        self._pending: dict[str, list[Cells]] = {table: [] for table in WRITE_ORDER}
        self._writers: dict[str, _SegmentWriter] = {}
        self._tried = float("-inf")
        self._process = os.getpid()

    def append(self, table: str, row: Mapping[str, object]) -> None:
        """Append a row. It is written by the next flush.

        Raises:
            ValueError: The row does not match the table's columns.
        """
        values = cells(table, row)
        self._pending[table].append(values)

    def due(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Return True if no flush was tried in the last `seconds`."""
        return time.monotonic() - self._tried >= seconds

    def flush(self) -> None:
        """Write all pending rows to the operating system, so that they survive this process.

        A forked child writes nothing, as the rows belong to its parent.

        Raises:
            RunError: The write failed, for example on a full disk. The rows stay in memory, and the next flush starts
                a new segment.
        """
        if os.getpid() != self._process:
            return
        self._tried = time.monotonic()
        for table in WRITE_ORDER:
            if self._pending[table]:
                self._write(table)

    def close(self) -> None:
        """Close the files without writing pending rows. Rows flushed afterwards begin segments of a larger number."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._segment = self._largest + 1

    def _write(self, table: str) -> None:
        """Write a table's pending rows, creating its segment if necessary."""
        batch = record_batch(table, self._pending[table])
        try:
            if table not in self._writers:
                self._writers[table] = self._new_segment(table)
            self._writers[table].write(batch)
        except OSError as error:
            broken = self._writers.pop(table, None)
            if broken is not None:
                broken.abandon()
            raise RunError(
                f"cannot write into {self._folder}: {error.strerror}; free some space, no row is lost yet"
            ) from error
        self._pending[table].clear()

    def _new_segment(self, table: str) -> _SegmentWriter:
        """Create a segment under an unused name: the session's number, or a later one after a failed write."""
        self._folder.mkdir(exist_ok=True)
        number = max([self._segment, *(n + 1 for name, n, _ in segment_paths(self._folder.parent) if name == table)])
        if number > LARGEST_NUMBER:
            raise RunError(f"{self._folder} has a segment of number {number - 1}, at most {LARGEST_NUMBER} are allowed")
        self._largest = max(self._largest, number)
        name = f"{table}-{number:06d}.arrows"
        return _SegmentWriter(self._folder / name, table, {**self._origin, "segment": name})


def segment_paths(folder: Path) -> list[tuple[str, int, Path]]:
    """Return table, number and path of every segment in a run's journal, sorted by number. Other files are ignored.

    Raises:
        RunError: The journal is no folder, or cannot be listed.
    """
    matches = ((SEGMENT_NAME.fullmatch(path.name), path) for path in folder_entries(folder / JOURNAL))
    found = [(match[1], int(match[2]), path) for match, path in matches if match]
    return sorted(found, key=lambda one: (one[1], one[2].name))


class _SegmentWriter:
    """Writer of one segment file, message by message. It never opens an existing file."""

    def __init__(self, path: Path, table: str, origin: Mapping[str, str]) -> None:
        schema = arrow_schema(table)
        metadata = {**schema.metadata, **origin, "seal": BLANK_SEAL}
        self._stream = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._stream, schema.with_metadata(metadata))
        self._path = path
        self._whole = 0  # batches written completely
        self._file = path.open("xb", buffering=0)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the batch as one sealed message; the first call also writes the sealed header."""
        self._writer.write_batch(batch, custom_metadata={"seal": BLANK_SEAL})
        messages = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        rest = memoryview(b"".join(sealed(message) for message in _messages(messages)))
        while rest:
            rest = rest[self._file.write(rest) :]
        self._whole += 1

    def abandon(self) -> None:
        """Close the file after a failed write, and remove it if it has no complete batch."""
        self.close()
        if not self._whole:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def close(self) -> None:
        """Close the file. The stream needs no end marker to be readable."""
        self._file.close()


def _messages(data: bytes) -> Iterator[bytes]:
    """Yield the Arrow messages in a part of a stream."""
    reader = pa.BufferReader(data)
    while (start := reader.tell()) < len(data):
        pa.ipc.read_message(reader)
        yield data[start : reader.tell()]
