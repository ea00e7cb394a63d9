"""Writer of a run: append rows, update the manifest, close the run."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.compaction import compact, unused_segment
from lossscope.landscape.storage.journal import Journal
from lossscope.landscape.storage.manifest import PROBING, manifest_text, read_manifest, utc_now, write_manifest
from lossscope.landscape.storage.run_folder import RunLock, claim_folder
from lossscope.landscape.storage.run_tables import RunTables
from lossscope.landscape.storage.schema import SCHEMA_VERSION, TABLES

__all__ = ["RunStore"]


class RunStore:
    """Writer of one run: open it with `create` or `resume` and `close` it, or `extend` it and `leave` it.

    If the process ends without `close`, the run reads as crashed and has every row up to the last flush; a process
    that exits normally still flushes. A store must not be shared between threads or processes.

    Attributes:
        path: The run's folder.
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
                schema_version, name, status, how_it_ended, created, ended and sessions.
            force: Replace a finished or crashed run. Files that are not a run are never removed.

        Raises:
            RunError: The name is not allowed, or the folder is taken or cannot be written.
            ValueError: A value of the manifest has no JSON form.
        """
        manifest_text(manifest)  # raises before any file is changed
        path = Path(path)
        lock = claim_folder(path, force=force)
        now = utc_now()
        own = {
            "schema_version": SCHEMA_VERSION,
            "name": path.name,
            "status": "running",
            "how_it_ended": None,
            "created": now,
            "ended": None,
        }
        sessions = [{"session": 1, "started": now, "resumed_at": None}]
        return _opened(cls, path, {**own, **manifest, **own, "sessions": sessions}, lock, Journal(path, 1, 1))

    @classmethod
    def resume(cls, path: str | Path, at_step: int) -> RunStore:
        """Open a run to continue it, in new files; existing files are not changed.

        Args:
            path: The run's folder.
            at_step: The step from which training continues, >= 0. Rows of earlier sessions beyond it are superseded as
                soon as this session has a row.

        Raises:
            RunError: There is no run, it is being recorded, or its tables cannot be read.
            SchemaError: A newer lossscope wrote the run.
            ValueError: `at_step` is negative.
        """
        if at_step < 0:
            raise ValueError(f"a run cannot be resumed at step {at_step}: at_step must be >= 0")
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
        path = Path(path)
        _check_segments(path)
        return cls._next_session(path, None, {**facts, "purpose": PROBING}, {}, at_once=False)

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
        read_manifest(path)
        lock = RunLock(path)
        try:
            manifest = read_manifest(path)
            sessions = [one for one in manifest.get("sessions") or [] if isinstance(one, dict)]
            known = [*(int(one.get("session") or 0) for one in sessions), *RunTables(path).sessions()]
            session = max(known, default=0) + 1
            journal = Journal(path, session, unused_segment(path), resumed_at)
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
        """
        self._check_open()
        self._journal.append(table, row)
        self._begin()

    def flush(self) -> None:
        """Write all pending rows to the operating system, so that they survive this process.

        Raises:
            RunError: The rows cannot be written; they stay in memory for the next flush.
        """
        self._check_open()
        self._journal.flush()

    def flush_if_due(self) -> bool:
        """Flush if no flush happened in the last second. Return True if it flushed."""
        self._check_open()
        return self._journal.flush_if_due()

    def update_manifest(self, **changes: Any) -> None:
        """Set keys of the manifest; `run.json` is replaced atomically.

        Raises:
            RunError: The file cannot be written.
            ValueError: A value has no JSON form, or the store is closed.
        """
        self._check_open()
        manifest = {**self.manifest, **changes}
        write_manifest(self.path, manifest)
        self.manifest, self._begun = manifest, True

    def close(self, status: Literal["finished", "failed", "stopped"], how: str) -> None:
        """End the run: flush, compact into Parquet, and write status and reason to the manifest.

        A second call does nothing. The manifest is written and the lock released in any case; a table that cannot be
        compacted stays readable in the journal.

        Args:
            status: `finished`, `failed` or `stopped`.
            how: A sentence that says how the run ended.

        Raises:
            RunError: Rows could not be written (the run is then `failed`) or compacted.
            ValueError: The status is none of these.
        """
        if status not in ("finished", "failed", "stopped"):
            raise ValueError(f"status must be one of 'finished', 'failed', 'stopped', got {status!r}")
        if self.closed:
            return
        try:
            lost, kept = self._settle()
            how = "; ".join([how, *map(str, lost + kept)])
            self.update_manifest(status="failed" if lost else status, how_it_ended=how, ended=utc_now())
        finally:
            self._release()
        if lost or kept:
            raise [*lost, *kept][0]

    def leave(self) -> None:
        """End an extension: flush and compact. The manifest keeps the run's status and end. A second call does nothing.

        Raises:
            RunError: Rows could not be written or compacted.
        """
        if self.closed:
            return
        try:
            lost, kept = self._settle() if self._begun else ([], [])
        finally:
            self._release()
        if lost or kept:
            raise [*lost, *kept][0]

    def _begin(self) -> None:
        """Write the manifest that lists this session, on the first call only."""
        if not self._begun:
            write_manifest(self.path, self.manifest)
            self._begun = True

    def _settle(self) -> tuple[list[RunError], list[RunError]]:
        """Flush and compact. Return the errors by which rows are lost, and those by which rows stay in the journal."""
        lost, kept = [], []
        try:
            self._journal.flush()
        except RunError as error:
            lost.append(error)
        try:
            compact(self.path)
        except RunError as error:
            kept.append(error)
        return lost, kept

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
    tables = RunTables(path)
    problems = [one.problem for table in TABLES for one in tables.segments(table) if one.problem]
    if problems:
        raise RunError(problems[0])


def _leave(journal: Journal, lock: RunLock) -> None:
    """Flush and release the run when the process exits, or the store is garbage-collected, without `close`."""
    with contextlib.suppress(RunError):
        journal.flush()
    journal.close()
    lock.release()
