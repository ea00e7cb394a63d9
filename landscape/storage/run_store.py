"""Writer of a run: append rows, update the manifest, close the run."""

from __future__ import annotations

import contextlib
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.compaction import compact, unused_segment
from lossscope.landscape.storage.journal import Journal
from lossscope.landscape.storage.manifest import (
    PROBING,
    check_name,
    manifest_text,
    read_manifest,
    utc_now,
    write_manifest,
)
from lossscope.landscape.storage.manifest_types import LONGEST_TEXT
from lossscope.landscape.storage.run_folder import RunLock, claim_folder
from lossscope.landscape.storage.run_tables import RunTables
from lossscope.landscape.storage.schema import SCHEMA_VERSION, TABLES

__all__ = ["Ending", "RunStore"]

Ending: TypeAlias = Literal["finished", "stopped", "failed"]


class RunStore:
    """Writer of one run: open it with `create` or `resume` and `close` it, or `extend` it and `leave` it.

    If the process ends without `close`, the run reads as crashed and has every row up to the last flush; a process
    that exits normally still flushes. A store must not be shared between threads or processes.

    Every write first checks that the folder is still the one that was opened. If it was removed, renamed or replaced,
    the write is a `RunError`, and nothing of the folder now at that path is touched. A forked child writes nothing.

    Attributes:
        path: The run's folder, absolute, so that changing the working directory does not matter.
        manifest: The contents of `run.json`; change them with `update_manifest`.
        session: The number of this recording session, 1 for a new run.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], lock: RunLock, journal: Journal, *, at_once: bool = True
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.session: int = manifest["sessions"][-1]["session"]
        self._lock = lock
        self._journal = journal
        self._leave = weakref.finalize(self, _leave, journal, lock)
        self._begun = False
        if at_once:
            self._begin()

    @classmethod
    def create(cls, path: str | Path, manifest: Mapping[str, Any], *, force: bool = False) -> RunStore:
        """Create a new run.

        Args:
            path: The run's folder; its last component is the run's name. Missing parents are created.
            manifest: Facts of the caller: config, arm, seeds, model, data hash, environment. The store adds
                schema_version, id, name, status, how_it_ended, created, ended and sessions.
            force: Replace a run that has ended, or whose recorder in this process was not closed. Files that are not a
                run are never removed, nor is a run that another process is recording.

        Raises:
            RunError: The name is not allowed, or the folder is taken or cannot be written.
            ValueError: A value of the manifest has no JSON form, or a known key the wrong type.
        """
        manifest_text(manifest)  # raises before any file is changed
        check_name(Path(path).name)
        path = Path(path).absolute()
        lock = claim_folder(path, force=force)
        now = utc_now()
        own: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "id": uuid.uuid4().hex,
            "name": path.name,
            "status": "running",
            "how_it_ended": None,
            "created": now,
            "ended": None,
        }
        sessions = [{"session": 1, "started": now, "resumed_at": None}]
        journal = Journal(path, 1, 1, run=own["id"])
        return _opened(cls, path, {**own, **manifest, **own, "sessions": sessions}, lock, journal)

    @classmethod
    def resume(cls, path: str | Path, at_step: int) -> RunStore:
        """Open a run to continue it, in new files; existing files are not changed.

        Args:
            path: The run's folder.
            at_step: The step from which training continues, >= 0. Rows of earlier sessions beyond it are superseded as
                soon as this session has a row.

        Raises:
            RunError: There is no run, it is being recorded, or its manifest or tables cannot be read; it is unchanged.
            SchemaError: A newer lossscope wrote the run.
            ValueError: `at_step` is negative.
        """
        if at_step < 0:
            raise ValueError(f"a run cannot be resumed at step {at_step}: at_step must be >= 0")
        _check_segments(Path(path).absolute())
        return cls._next_session(
            Path(path), int(at_step), {}, {"status": "running", "how_it_ended": None, "ended": None}
        )

    @classmethod
    def extend(cls, path: str | Path, facts: Mapping[str, Any]) -> RunStore:
        """Open a run that is not being recorded to add rows measured afterwards; they supersede no other row.

        The status and the end of the run stay unchanged, also while the extension is open. Nothing is written before
        the first row, so an extension without rows leaves the run byte for byte unchanged. End it with `leave`.

        Args:
            path: The run's folder.
            facts: Facts about this session, kept in the manifest beside its number.

        Raises:
            RunError: There is no run, it is being recorded, or one of its tables is corrupted.
            SchemaError: A newer lossscope wrote the run.
        """
        _check_segments(Path(path).absolute())
        return cls._next_session(Path(path), None, {**facts, "purpose": PROBING}, {}, at_once=False)

    @classmethod
    def _next_session(
        cls,
        path: Path,
        resumed_at: int | None,
        facts: Mapping[str, Any],
        changes: Mapping[str, Any],
        *,
        at_once: bool = True,
    ) -> RunStore:
        """Lock a run and return the store of its next session, with changes to its manifest."""
        path = path.absolute()
        read_manifest(path)
        lock = RunLock(path, probing=not at_once)
        try:
            manifest = read_manifest(path)
            run, sessions = manifest.get("id"), list(manifest.get("sessions") or [])
            session = max([*(one["session"] for one in sessions), *RunTables(path, run).sessions()], default=0) + 1
            journal = Journal(path, session, unused_segment(path, run), resumed_at, run)
        except BaseException:
            lock.release()
            raise
        sessions.append({"session": session, "started": utc_now(), "resumed_at": resumed_at, **facts})
        manifest.update({**changes, "schema_version": SCHEMA_VERSION, "sessions": sessions})
        return _opened(cls, path, manifest, lock, journal, at_once=at_once)

    @property
    def closed(self) -> bool:
        """True after `close` or `leave`: the store then accepts no more rows."""
        return not self._leave.alive

    def append(self, table: str, row: Mapping[str, object]) -> None:
        """Append one row. Readers see it after the next flush.

        Args:
            table: A key of `TABLES`.
            row: Column names to values. A missing column, None and nan are stored as null.

        Raises:
            ValueError: The row does not match the table's columns, or the store is closed.
            RunError: This is the first row, and the manifest cannot be written.
        """
        self._check_open()
        self._journal.append(table, row)
        self._begin()

    def flush(self) -> None:
        """Write all pending rows to the operating system, so that they survive this process.

        Raises:
            RunError: They cannot be written, or the folder is no longer this run's; they stay in memory for the next
                flush.
        """
        self._check_open()
        self._lock.check()
        self._journal.flush()

    def flush_due(self) -> bool:
        """Return True if no flush was tried in the last second."""
        return self._journal.due()

    def update_manifest(self, **changes: Any) -> None:
        """Set keys of the manifest; `run.json` is replaced atomically.

        Raises:
            RunError: The file cannot be written, or the folder is no longer this run's.
            ValueError: A value has no JSON form, a known key has the wrong type, or the store is closed.
        """
        self._check_open()
        self._write(changes)

    def close(self, status: Ending, how: str) -> None:
        """End the run: flush, compact into Parquet, and write status and reason to the manifest.

        Rows are flushed before anything else. If they or the manifest cannot be written, on a full disk for example,
        the store stays open with its rows in memory, the manifest says `failed` where that can be written, and `close`
        can be called again. A table that cannot be compacted stays readable in the journal. A second call after a
        successful one does nothing, nor does a call in a forked child.

        Args:
            status: `finished`, `stopped` (ended early on purpose) or `failed`.
            how: A sentence that says how the run ended.

        Raises:
            RunError: Rows or the manifest could not be written, or a table could not be compacted.
            ValueError: The status is none of the three.
        """
        if status not in get_args(Ending):
            raise ValueError(f"status must be one of 'finished', 'stopped', 'failed', got {status!r}")
        if self._over():
            return
        with self._released_unless_it_can_be_repeated():
            kept = self._settle(how)
            how = "; ".join([how, *map(str, kept)])
            self._write({"status": status, "how_it_ended": how[:LONGEST_TEXT], "ended": utc_now()})
        if kept:
            raise kept[0]

    def leave(self) -> None:
        """End an extension: flush and compact. The manifest keeps the run's status and end.

        If rows cannot be written, the store stays open, as in `close`. A second call after a successful one does
        nothing.

        Raises:
            RunError: Rows could not be written or compacted.
        """
        if self._over():
            return
        with self._released_unless_it_can_be_repeated():
            kept = self._settle(None) if self._begun else []
        if kept:
            raise kept[0]

    def _over(self) -> bool:
        """Return True if there is nothing to end: the store is closed, or this is a forked child, which lets go."""
        if not self.closed and os.getpid() != self._lock.process:
            self._release()
        return self.closed

    @contextlib.contextmanager
    def _released_unless_it_can_be_repeated(self) -> Iterator[None]:
        """Release the run after the block, and on every error but RunError."""
        try:
            yield
        except RunError:
            raise
        except BaseException:
            self._release()
            raise
        self._release()

    def _begin(self) -> None:
        """Write the manifest that lists this session, on the first call only."""
        if not self._begun:
            self._write({})

    def _write(self, changes: Mapping[str, Any]) -> None:
        """Write the manifest with changes, after checking that the folder is still this run's."""
        manifest = {**self.manifest, **changes}
        self._lock.check()
        write_manifest(self.path, manifest)
        self.manifest, self._begun = manifest, True

    def _settle(self, how: str | None) -> list[RunError]:
        """Flush and compact. Return the errors by which rows stay in the journal.

        Raises:
            RunError: Rows could not be flushed. If `how` is given, the manifest says so where it can be written.
        """
        try:
            self._lock.check()
            self._journal.flush()
        except RunError as error:
            if how is not None:
                with contextlib.suppress(RunError):
                    reason = f"{how}; {error}"[:LONGEST_TEXT]
                    self._write({"status": "failed", "how_it_ended": reason, "ended": utc_now()})
            raise
        self._journal.close()  # Windows removes no open file; a later flush opens new segments
        try:
            compact(self.path, self.manifest.get("id"))
        except RunError as error:
            return [error]
        return []

    def _release(self) -> None:
        """Close the files and release the lock."""
        self._leave.detach()
        self._journal.close()
        self._lock.release()

    def _check_open(self) -> None:
        """Raise ValueError if the store is closed."""
        if self.closed:
            raise ValueError(f"the run in {self.path} is closed: resume it to append rows")


def _opened(
    cls: type[RunStore],
    path: Path,
    manifest: dict[str, Any],
    lock: RunLock,
    journal: Journal,
    *,
    at_once: bool = True,
) -> RunStore:
    """Return the store. Release the lock if its manifest cannot be written."""
    try:
        return cls(path, manifest, lock, journal, at_once=at_once)
    except BaseException:
        lock.release()
        raise


def _check_segments(path: Path) -> None:
    """Raise RunError if a segment of the journal is corrupted, which would prevent the compaction of new rows."""
    tables = RunTables(path, read_manifest(path).get("id"))
    problems = [one.problem for table in TABLES for one in tables.segments(table) if one.problem]
    if problems:
        raise RunError(problems[0])


def _leave(journal: Journal, lock: RunLock) -> None:
    """Flush and release the run when the process exits, or the store is garbage-collected, without `close`."""
    with contextlib.suppress(RunError):
        lock.check()
        journal.flush()
    journal.close()
    lock.release()
