"""Journal segment reader: the complete records of an Arrow IPC stream, wherever its end was lost.

A segment is an ordinary Arrow IPC stream (`pyarrow.ipc.open_stream` reads it) in which the custom metadata of every
message holds a seal: the length of the message and its CRC-32, computed with the CRC's digits set to zero. So a reader
can distinguish a truncated record (the file is shorter than the seal says) from an altered one (the checksum
differs), and trusts no length before comparing it with the length of the file.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.files import read_regular
from lossscope.landscape.storage.schema import LONGEST_CELL, TABLES, arrow_schema, columns

__all__ = [
    "BLANK_SEAL",
    "LARGEST_NUMBER",
    "LARGEST_TABLE",
    "SEGMENT_NAME",
    "UNREADABLE",
    "Segment",
    "check_columns",
    "check_lengths",
    "conformed",
    "read_segment",
    "sealed",
    "text_lengths",
]

BLANK_SEAL: Final = "crc32=00000000 bytes=000000000000"
SEGMENT_NAME: Final = re.compile(rf"({'|'.join(TABLES)})-([0-9]{{6,9}})\.arrows")
LARGEST_NUMBER: Final = 999_999_999
LARGEST_TABLE: Final = 2 * 2**30  # bytes of a table in memory; 10 million steps fit
UNREADABLE: Final = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, MemoryError)

_SEAL: Final = re.compile(rb"crc32=([0-9a-f]{8}) bytes=([0-9]{12})")
_ZEROS: Final = b"00000000"
_MARK: Final = b"\xff\xff\xff\xff"  # starts every message of an Arrow stream; then 4 bytes: metadata length


@dataclass(frozen=True)
class Segment:
    """The complete records of one segment, and the position of their end."""

    path: Path
    session: int | None  # the recording session that wrote it; None if the header is truncated or altered
    resumed_at: int | None  # the step at which that session resumed; None for the first
    rows: pa.Table
    end: int  # bytes; all records before this position are complete
    size: int  # bytes of the file
    problem: str | None  # one line if a record was altered or is not this run's; None if complete or truncated

    @property
    def last_step(self) -> int | None:
        """The step of the last row; None if there are no rows."""
        return self.rows["step"][-1].as_py() if len(self.rows) else None

    @property
    def ending(self) -> str:
        """A sentence, without its full stop, that says where the segment ends."""
        name = f"journal/{self.path.name}"
        after = "before any row" if self.last_step is None else f"after step {self.last_step}"
        if self.end == self.size:
            return f"{name} ends with a complete record {after}"
        return f"{name} ends inside a record {after} (byte {self.end} of {self.size})"


class _AlteredError(Exception):
    """A complete record whose contents are not those that were written."""


def sealed(message: bytes) -> bytes:
    """Return the Arrow message with its blank seal replaced by its length and CRC-32."""
    content = bytearray(message)
    at = message.index(BLANK_SEAL.encode())
    content[at : at + len(BLANK_SEAL)] = b"crc32=%s bytes=%012d" % (_ZEROS, len(message))
    content[at + 6 : at + 14] = b"%08x" % zlib.crc32(content)
    return bytes(content)


def read_segment(path: Path, limit: int | None = None, run: str | None = None) -> Segment:
    """Read the complete records among the first `limit` bytes of a segment (by default the whole file).

    Invalid contents never raise: an altered record, a file of another run, a copy under another name and anything but a
    regular file of at most `LARGEST_TABLE` bytes are described by `Segment.problem`.

    Args:
        path: The file.
        limit: Bytes to read at most.
        run: The identity of the run, which every segment must have; None for runs recorded before they had one.

    Raises:
        FileNotFoundError: There is no such file.
    """
    table = path.name.rsplit("-", 1)[0]
    try:
        data = read_regular(path, LARGEST_TABLE)[:limit]
    except RunError as error:
        return Segment(path, None, None, _empty(table), 0, 0, str(error))
    batches: list[pa.RecordBatch] = []
    schema: pa.Schema | None = None
    end, problem = 0, None
    try:
        while (stop := _record_end(data, end)) is not None:
            message = pa.py_buffer(data)[end:stop]
            try:
                if schema is None:
                    schema = _header(message, table)
                    problem = _foreign(schema, path, run)
                    if problem:
                        break
                else:
                    batches.append(_batch(message, schema))
            except UNREADABLE as error:
                raise _AlteredError from error
            end = stop
    except _AlteredError:
        problem = f"{path} is corrupted from byte {end} of {len(data)} on: move it out of journal/ to read the rest"
    session, resumed_at = (None, None) if schema is None else _provenance(schema)
    rows = conformed(table, pa.Table.from_batches(batches, schema)) if schema is not None else _empty(table)
    return Segment(path, session, resumed_at, rows, end, len(data), problem)


def conformed(table: str, rows: pa.Table, names: Collection[str] | None = None) -> pa.Table:
    """Return the rows with exactly the columns and the schema of the table; missing columns are null.

    Args:
        table: A key of `TABLES`.
        rows: Rows with some of its columns.
        names: Columns to return, in the order of the table; None for all.

    Raises:
        ValueError: A column is unknown, occurs twice or has another type.
    """
    schema = arrow_schema(table, names)
    check_columns(table, rows.column_names)
    found = []
    for field in schema:
        column = rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        if column.type != field.type or (column.null_count and not field.nullable):
            raise ValueError(f"column {field.name!r} of table {table} has type {column.type}")
        found.append(column)
    return pa.Table.from_arrays(found, schema=schema)


def check_columns(table: str, names: Sequence[str]) -> None:
    """Raise ValueError if a column is unknown or occurs twice."""
    if len(set(names)) != len(names) or not set(names) <= set(columns(table)):
        raise ValueError(f"table {table} does not have columns {names}")


def _empty(table: str) -> pa.Table:
    """Return the table without rows."""
    return arrow_schema(table).empty_table()


def _record_end(data: bytes, start: int) -> int | None:
    """Return the end of the record that starts at `start`; None if the file ends before it.

    Raises:
        _AlteredError: The bytes are not a record that was written.
    """
    seal = _SEAL.search(data, start)
    metadata_end = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")
    if data[start : start + 4] != _MARK[: len(data) - start]:
        if any(data[start:]):
            raise _AlteredError  # a tail of zeros is allowed: a power cut leaves it of a record not yet on disk
        return None
    if seal is None:
        if metadata_end <= len(data) and start + 8 <= len(data):
            raise _AlteredError  # the metadata is complete, but its seal is missing
        return None
    end = start + int(seal[2])
    if end < seal.end() or seal.end() > metadata_end:
        raise _AlteredError
    if end > len(data):
        if _SEAL.search(data, seal.end()):
            raise _AlteredError  # a later record follows, so this one is not truncated: its length is wrong
        return None
    crc = zlib.crc32(data[seal.end(1) : end], zlib.crc32(_ZEROS, zlib.crc32(data[start : seal.start(1)])))
    if crc != int(seal[1], 16):
        raise _AlteredError
    return end


def _header(message: pa.Buffer, table: str) -> pa.Schema:
    """Return the schema of the stream, after checking that it fits the table and names its session."""
    schema = pa.ipc.read_schema(pa.ipc.read_message(message))
    conformed(table, schema.empty_table())
    _provenance(schema)
    return schema


def _foreign(schema: pa.Schema, path: Path, run: str | None) -> str | None:
    """Return one line if the segment is of another run or was written under another name; None if it is in place."""
    if run is None:
        return None
    own, name = (schema.metadata.get(key, b"").decode("utf-8", "replace") for key in (b"run", b"segment"))
    if own != run:
        return f"{path} belongs to another run: move it out of journal/ to read the rest"
    return None if name == path.name else f"{path} is a copy of {name[:40]}: move it out of journal/ to read the rest"


def _batch(message: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """Return a record batch, after checking that it is not compressed and that all its offsets are in bounds.

    The store writes no compressed batches, and a small one can unpack to gigabytes.
    """
    parsed = pa.ipc.read_message(message)
    if _compressed(parsed.metadata.to_pybytes()):
        raise ValueError("compressed record batch")
    batch = pa.ipc.read_record_batch(parsed, schema)
    batch.validate(full=True)
    _check_text(batch)
    return batch


def _compressed(metadata: bytes) -> bool:
    """Return True if the metadata of a record batch name a compression, which is the fourth field of its flatbuffer.

    Arrow has verified the flatbuffer. Format: `Message.fbs` in the Arrow specification; a table begins with the
    distance back to its vtable, whose 16-bit entries after the first two are the positions of the fields.
    """

    def field(table: int, index: int) -> int:
        """Return the position of a field; 0 if the table lacks it."""
        (back,) = struct.unpack_from("<i", metadata, table)
        (size,) = struct.unpack_from("<H", metadata, table - back)
        if 4 + 2 * index >= size:
            return 0
        (offset,) = struct.unpack_from("<H", metadata, table - back + 4 + 2 * index)
        return table + offset if offset else 0

    (root,) = struct.unpack_from("<I", metadata, 0)
    header = field(root, 2)
    (distance,) = struct.unpack_from("<I", metadata, header)
    return bool(header) and bool(field(header + distance, 3))


def _check_text(batch: pa.RecordBatch) -> None:
    """Raise ValueError for a text longer than any that the store writes."""
    for column in batch.columns:
        if pa.types.is_string(column.type):
            check_lengths(text_lengths(column))


def text_lengths(texts: pa.StringArray) -> NDArray[np.int32]:
    """Return the length of each text in bytes of UTF-8."""
    if not len(texts):
        return np.zeros(0, np.int32)
    offsets = np.frombuffer(texts.buffers()[1], np.int32)
    return np.diff(offsets[texts.offset : texts.offset + len(texts) + 1])


def check_lengths(lengths: NDArray[np.int32]) -> None:
    """Raise ValueError if a text is longer than any that the store writes."""
    longest = int(lengths.max(initial=0))
    if longest > 4 * LONGEST_CELL:  # a character has at most four bytes
        raise ValueError(f"a text of {longest:,} bytes, at most {4 * LONGEST_CELL:,} are allowed")


def _provenance(schema: pa.Schema) -> tuple[int, int | None]:
    """Return the session that wrote a stream, and the step at which it resumed."""
    metadata = schema.metadata
    resumed_at = metadata.get(b"resumed_at")
    return int(metadata[b"session"]), None if resumed_at is None else int(resumed_at)
