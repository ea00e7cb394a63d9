"""Parquet file of a table: its rows up to some session, and the names of the journal segments it contains."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.files import atomic_write, open_regular
from lossscope.landscape.storage.schema import TABLES
from lossscope.landscape.storage.segment import (
    LARGEST_TABLE,
    SEGMENT_NAME,
    UNREADABLE,
    check_columns,
    check_lengths,
    conformed,
    text_lengths,
)

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["CompactedTable", "parquet_path", "read_parquet", "write_parquet"]

_PROVENANCE: Final = b"lossscope"
_SMALL: Final = 100_000  # cells that one thread reads sooner than several begin
_GROUP: Final = 131_072  # rows that a reader of the last steps has to read


@dataclass(frozen=True)
class CompactedTable:
    """The rows of a table in Parquet, with their provenance."""

    rows: pa.Table
    segments: frozenset[str]  # names of the journal segments it contains; a reader skips these files
    sessions: dict[int, int | None]  # sessions with rows at the time, each with the step it resumed at


def parquet_path(folder: Path, table: str) -> Path:
    """Return the path of a table's Parquet file."""
    return folder / f"{table}.parquet"


def write_parquet(folder: Path, table: str, compacted: CompactedTable, run: str | None) -> None:
    """Replace a table's Parquet file atomically, with page checksums and the identity of the run.

    Raises:
        RunError: The file cannot be written; the old file and the journal are unchanged.
    """
    import pyarrow.parquet as pq

    provenance = {
        "segments": sorted(compacted.segments),
        "sessions": [[session, resumed_at] for session, resumed_at in sorted(compacted.sessions.items())],
        "run": run,
    }
    metadata = {**compacted.rows.schema.metadata, _PROVENANCE: json.dumps(provenance)}
    sink = pa.BufferOutputStream()
    rows = compacted.rows.replace_schema_metadata(metadata)
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True, row_group_size=_GROUP)
    atomic_write(parquet_path(folder, table), sink.getvalue().to_pybytes())


def read_parquet(
    folder: Path,
    table: str,
    run: str | None,
    *,
    rows: bool = True,
    names: Collection[str] | None = None,
    since: int | None = None,
) -> CompactedTable | None:
    """Read a table's Parquet file; return None if it does not exist.

    Args:
        folder: The run's folder.
        table: A key of `TABLES`.
        run: The identity of the run, which the file must have; None for runs recorded before they had one.
        rows: False reads the provenance only, and returns an empty table.
        names: Columns to read; no byte of the others is. None for all.
        since: The first step that is wanted: groups of rows before it are left out. None for all rows.

    Raises:
        RunError: The file is truncated or corrupted, what is read unpacks to more than `LARGEST_TABLE` bytes, or it is
            another run's.
    """
    import pyarrow.parquet as pq

    path = parquet_path(folder, table)
    wanted = [column for column in TABLES[table] if rows and (names is None or column.name in names)]
    text = [column.name for column in wanted if column.type == "text"]
    lists = [column.name for column in wanted if column.type == "floats"]
    try:
        # Text stays a dictionary until its size is known: a few bytes can unpack to gigabytes of it.
        with (
            open_regular(path) as raw,
            pq.ParquetFile(raw, page_checksum_verification=True, read_dictionary=_present(raw, text)) as file,
        ):
            schema = file.schema_arrow
            provenance = json.loads(schema.metadata[_PROVENANCE])
            check_columns(table, schema.names)
            kept = [column.name for column in wanted if column.name in schema.names]
            if rows:
                _check_size(8 * max(file.metadata.num_rows * len(kept), _list_entries(file, lists)))
            threads = file.metadata.num_rows * len(kept) > _SMALL
            groups = _groups(file, since) if rows else []
            content = file.read_row_groups(groups, kept, use_threads=threads) if rows else _empty(schema)
        if run is not None and provenance.get("run") != run:
            raise RunError(f"{path} belongs to another run: move it away, the other tables still read")
        content.validate(full=True)
        found = conformed(table, _with_text(content), names)
        return CompactedTable(found, _segments(provenance["segments"]), _sessions(provenance["sessions"]))
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise RunError(
            f"{path} cannot be read ({_reason(error)}): restore it, or move it away and the other tables still read"
        ) from error


def _empty(schema: pa.Schema) -> pa.Table:
    """Return a table without rows and columns."""
    return schema.empty_table().select([])


def _groups(file: pq.ParquetFile, since: int | None) -> list[int]:
    """Return the groups of rows up to the last, from the first one that has a row at a step or later.

    The steps are read for it: statistics of a column whose metadata were altered end the process, see `_list_entries`.
    """
    every = list(range(file.metadata.num_row_groups))
    if since is None:
        return every
    earlier = int((file.read(["step"])["step"].to_numpy() < since).sum())
    ends = np.cumsum([file.metadata.row_group(group).num_rows for group in every])
    return [group for group in every if ends[group] > earlier]


def _present(raw: BinaryIO, names: list[str]) -> list[str]:
    """Return those of the columns that a Parquet file has; earlier versions wrote fewer."""
    import pyarrow.parquet as pq

    if not names:
        return []
    present = set(pq.read_schema(raw).names)
    raw.seek(0)
    return [name for name in names if name in present]


def _list_entries(file: pq.ParquetFile, lists: list[str]) -> int:
    """Return the number of entries in all lists of a Parquet file, which a few bytes can repeat endlessly."""
    paths = [file.metadata.schema.column(index).path for index in range(file.metadata.num_columns)]
    found = {path: index for index, path in enumerate(paths) if path.split(".")[0] in lists}
    if not found or not file.metadata.num_rows:
        return 0
    # The scan decodes in pieces. It is needed because pyarrow ends the process if the metadata of a column are altered
    # and read through `column()`, while the scan raises an error.
    file.scan_contents(columns=list(found))
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    return sum(group.column(index).num_values for group in groups for index in found.values())


def _with_text(content: pa.Table) -> pa.Table:
    """Return the table with its dictionaries of text unpacked, after checking the size of the result."""
    for index, field in enumerate(content.schema):
        if not pa.types.is_dictionary(field.type):
            continue
        column = content.column(index)
        _check_size(sum(_text_bytes(chunk) for chunk in column.chunks))
        content = content.set_column(index, field.with_type(pa.string()), column.cast(pa.string()))
    return content


def _text_bytes(chunk: pa.DictionaryArray) -> int:
    """Return the bytes of a dictionary of text, unpacked. Raise ValueError if a text is longer than any written."""
    lengths = text_lengths(chunk.dictionary)
    check_lengths(lengths)
    used = chunk.indices.drop_null().to_numpy()
    return int(np.bincount(used, minlength=len(lengths)) @ lengths.astype(np.int64)) if len(used) else 0


def _check_size(size: int) -> None:
    """Raise ValueError for a table that is too large to read."""
    if size > LARGEST_TABLE:
        raise ValueError(f"it unpacks to {size:,} bytes, at most {LARGEST_TABLE:,} are read")


def _segments(names: list[Any]) -> frozenset[str]:
    """Return the names of the journal segments that the file contains."""
    if not all(isinstance(name, str) and SEGMENT_NAME.fullmatch(name) for name in names):
        raise ValueError("its list of segments holds another name")
    return frozenset(names)


def _sessions(pairs: list[list[Any]]) -> dict[int, int | None]:
    """Return the step at which each session resumed, by session number."""
    return {int(session): None if step is None else int(step) for session, step in pairs}


def _reason(error: BaseException) -> str:
    """Return the first line of an error message, shortened; the name of the error's type if it has no message."""
    lines = str(error).splitlines()
    return lines[0][:100].rstrip(" .") if lines and lines[0] else type(error).__name__
