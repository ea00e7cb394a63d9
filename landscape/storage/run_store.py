"""A run's folder as its recorder sees it: rows in, a manifest, and an end."""

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
from lossscope.landscape.storage.run_folder import RunLock, claimed_folder
from lossscope.landscape.storage.run_tables import RunTables
from lossscope.landscape.storage.schema import SCHEMA_VERSION, TABLES

__all__ = ["RunStore"]


class RunStore:
    """The writer of one run; made by `create` or `resume` and ended by `close`, or by `extend` and `leave`.

    A process that ends without `close` leaves a run that reads as crashed, with every row of the last flush; a
    process that ends in good order still flushes. Not to be shared between threads or processes.

    Attributes:
        path: The run's folder.
        manifest: What `run.json` says now; change it through `update_manifest`.
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
        """Begin a new run.

        Args:
            path: The run's folder; its last component is the run's name. Parents are made as needed.
            manifest: What the caller knows: config, arm, seeds, model, data hash, environment. The store adds
                schema_version, name, status, how_it_ended, created, ended and sessions.
            force: Replace a finished or crashed run that is there. Nothing but a run is ever removed.

        Raises:
            RunError: The name is not allowed, the place is taken or cannot be written.
            ValueError: The manifest holds what JSON cannot.
        """
        manifest_text(manifest)  # refuse before anything is touched
        path = Path(path)
        lock = claimed_folder(path, force=force)
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
        """Go on with a run, in new files; no existing one is shortened or changed.

        Args:
            path: The run's folder.
            at_step: The step that training goes on from. Rows of earlier sessions beyond it stop counting as
                soon as this session has a row.

        Raises:
            RunError: There is no run, it is being recorded, or its tables cannot be read.
            SchemaError: A newer lossscope wrote it.
            ValueError: `at_step` is below zero.
        """
        if at_step < 0:
            raise ValueError(f"a run cannot be resumed at step {at_step}: the least is 0")
        return cls._gone_on(Path(path), int(at_step), {}, {"status": "running", "how_it_ended": None, "ended": None})

    @classmethod
    def extend(cls, path: str | Path, facts: Mapping[str, Any]) -> RunStore:
        """Add rows to a run that is not being recorded: measured after the fact, they supersede nothing.

        How the run ended stays as it is, and it reads so all the while. Nothing is written before the first row, so
        an extension without any leaves the run byte for byte as it was. End it with `leave`.

        Args:
            path: The run's folder.
            facts: What the caller knows of this session; kept in the manifest beside its number.

        Raises:
            RunError: There is no run, it is being recorded, or one of its tables is garbled.
            SchemaError: A newer lossscope wrote it.
        """
        path = Path(path)
        _refuse_garbled(path)
        return cls._gone_on(path, None, {**facts, "purpose": PROBING}, {}, at_once=False)

    @classmethod
    def _gone_on(
        cls,
        path: Path,
        resumed_at: int | None,
        facts: Mapping[str, Any],
        changes: Mapping[str, Any],
        *,
        at_once: bool = True,
    ) -> RunStore:
        """The store of a further session of a run, with changes to its manifest."""
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
        """Whether the run has ended; it then takes no more rows."""
        return not self._leave.alive

    def append(self, table: str, row: Mapping[str, object]) -> None:
        """Take one row; a reader sees it after the next flush.

        Args:
            table: `steps`, `tensors`, `spectra`, `probes` or `densities`.
            row: Column names to values; an absent column, None and nan are null.

        Raises:
            ValueError: The row does not fit the table, or the store is closed.
        """
        self._refuse_if_closed()
        self._journal.append(table, row)
        self._begin()

    def flush(self) -> None:
        """Hand all rows to the operating system, so that they outlive this process.

        Raises:
            RunError: They cannot be written; they stay in memory for the next flush.
        """
        self._refuse_if_closed()
        self._journal.flush()

    def flush_if_due(self) -> bool:
        """Flush if the last flush is a second ago or there was none yet; whether it did."""
        self._refuse_if_closed()
        return self._journal.flush_if_due()

    def update_manifest(self, **changes: Any) -> None:
        """Set keys of the manifest; `run.json` is replaced in one go.

        Raises:
            RunError: It cannot be written.
            ValueError: A value has no JSON form, or the store is closed.
        """
        self._refuse_if_closed()
        manifest = {**self.manifest, **changes}
        write_manifest(self.path, manifest)
        self.manifest, self._begun = manifest, True

    def close(self, status: Literal["finished", "failed"], how: str) -> None:
        """End the run: flush, compact into Parquet, and say in the manifest how it ended. Again: nothing.

        The manifest is written and the lock released whatever happens; a table that cannot be compacted stays in
        the journal, where it reads as well.

        Args:
            status: How it ended.
            how: The same in a sentence.

        Raises:
            RunError: Rows could not be written (the run is then `failed`) or compacted.
            ValueError: There is no such status.
        """
        if status not in ("finished", "failed"):
            raise ValueError(f"a run cannot end as {status!r}: use finished or failed")
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
        """End an extension: flush and compact; what the manifest says of the run's end stays. Again: nothing.

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
        """Say in the manifest that this session is there, once."""
        if not self._begun:
            write_manifest(self.path, self.manifest)
            self._begun = True

    def _settle(self) -> tuple[list[RunError], list[RunError]]:
        """Flush and compact; the errors of either, with which rows are lost or are kept in the journal."""
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
        """Close the files and give the folder back."""
        self._leave.detach()
        self._journal.close()
        self._lock.release()

    def _refuse_if_closed(self) -> None:
        """Refuse to write into a run that has ended."""
        if self.closed:
            raise ValueError(f"the run in {self.path} is closed: resume it to go on")


def _opened(
    cls: type[RunStore],
    path: Path,
    manifest: dict[str, Any],
    lock: RunLock,
    journal: Journal,
    *,
    at_once: bool = True,
) -> RunStore:
    """The store, or the lock given back where its manifest cannot be written."""
    try:
        return cls(path, manifest, lock, journal, at_once=at_once)
    except BaseException:
        lock.release()
        raise


def _refuse_garbled(path: Path) -> None:
    """Refuse a run whose journal could not be compacted with new rows in it."""
    tables = RunTables(path)
    problems = [one.problem for table in TABLES for one in tables.segments(table) if one.problem]
    if problems:
        raise RunError(problems[0])


def _leave(journal: Journal, lock: RunLock) -> None:
    """What is left to do when a process ends, or a store is dropped, without `close`."""
    with contextlib.suppress(RunError):
        journal.flush()
    journal.close()
    lock.release()
