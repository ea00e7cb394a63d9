"""Parquet file of a table: its rows up to some session, and the names of the journal segments it contains."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.manifest import atomic_write
from lossscope.landscape.storage.segment import UNREADABLE, conformed

__all__ = ["CompactedTable", "parquet_path", "read_parquet", "write_parquet"]

_PROVENANCE: Final = b"lossscope"


@dataclass(frozen=True)
class CompactedTable:
    """The rows of a table in Parquet, with their provenance."""

    rows: pa.Table
    segments: frozenset[str]  # names of the journal segments it contains; a reader skips these files
    sessions: dict[int, int | None]  # sessions with rows at the time, each with the step it resumed at


def parquet_path(folder: Path, table: str) -> Path:
    """Return the path of a table's Parquet file."""
    return folder / f"{table}.parquet"


def write_parquet(folder: Path, table: str, compacted: CompactedTable) -> None:
    """Replace a table's Parquet file atomically, with page checksums.

    Raises:
        RunError: The file cannot be written; the old file and the journal are unchanged.
    """
    import pyarrow.parquet as pq

    provenance = {
        "segments": sorted(compacted.segments),
        "sessions": [[session, resumed_at] for session, resumed_at in sorted(compacted.sessions.items())],
    }
    metadata = {**compacted.rows.schema.metadata, _PROVENANCE: json.dumps(provenance)}
    sink = pa.BufferOutputStream()
    pq.write_table(compacted.rows.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    atomic_write(parquet_path(folder, table), sink.getvalue().to_pybytes())


def read_parquet(folder: Path, table: str, *, rows: bool = True) -> CompactedTable | None:
    """Read a table's Parquet file; return None if it does not exist.

    Args:
        folder: The run's folder.
        table: A key of `TABLES`.
        rows: False reads the provenance only, and returns an empty table.

    Raises:
        RunError: The file is truncated or corrupted.
    """
    import pyarrow.parquet as pq

    path = parquet_path(folder, table)
    try:
        with path.open("rb") as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
            provenance = json.loads(file.schema_arrow.metadata[_PROVENANCE])
            content = file.read() if rows else file.schema_arrow.empty_table()
        content.validate(full=True)
        return CompactedTable(
            conformed(table, content), frozenset(map(str, provenance["segments"])), _sessions(provenance["sessions"])
        )
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise RunError(
            f"{path} cannot be read ({_reason(error)}): restore it, or move it away and the other tables still read"
        ) from error


def _sessions(pairs: list[list[Any]]) -> dict[int, int | None]:
    """Return the step at which each session resumed, by session number."""
    return {int(session): None if step is None else int(step) for session, step in pairs}


def _reason(error: BaseException) -> str:
    """Return the first line of an error message, shortened; the name of the error's type if it has no message."""
    lines = str(error).splitlines()
    return lines[0][:100].rstrip(" .") if lines and lines[0] else type(error).__name__
