"""Writer of a recording: rows and manifest of the run, with a full disk or a removed folder as missing values."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from lossscope.landscape.errors import RunError
from lossscope.landscape.recording.faults import Faults, reason_of, say
from lossscope.landscape.recording.overhead import Overhead
from lossscope.landscape.storage.manifest import MANIFEST
from lossscope.landscape.storage.missing_values import MISSING_VALUES
from lossscope.landscape.storage.run_store import RunStore

__all__ = ["RunWriter", "Status"]

Status = Literal["finished", "failed", "stopped"]
_RETRY: Final = 1.0  # seconds between attempts to write to a disk that refused
_MOST_UNWRITTEN: Final = 100_000  # rows kept in memory while the disk refuses


class RunWriter:
    """Writer of the rows of a training. Nothing that the disk does raises in the training, unless `strict`.

    It knows neither model nor optimizer, so that a run can be ended after its recorder was dropped.

    Args:
        store: The run.
        faults: Collects what cannot be written.
        overhead: Wall time and the time of recording.
        planned: Planned number of steps, if it is known.

    Attributes:
        path: The run's folder.
        steps: Steps recorded so far.
        ended: True after `end`.
        error: The exception of the end; None if everything was written.
        lost: Its reason; "" if everything was written.
        busy: True while a file is written, which a signal must not interrupt.
        when_idle: Called after each write.
    """

    def __init__(self, store: RunStore, faults: Faults, overhead: Overhead, planned: int | None) -> None:
        self.path: Path = store.path
        self.steps = 0
        self.ended = False
        self.error: Exception | None = None
        self.lost = ""
        self.busy = False
        self.when_idle: Callable[[], None] | None = None
        self._ending: tuple[Status, str] | None = None
        self.planned = planned
        self._store, self._faults, self._overhead = store, faults, overhead
        self._unwritten = 0
        self._retry = float("-inf")

    @property
    def manifest(self) -> dict[str, Any]:
        """Contents of `run.json`."""
        return self._store.manifest

    @property
    def unfinished(self) -> bool:
        """True if the end could not be written, to a full disk for example; `end` then tries again."""
        return self.error is not None and not self._store.closed

    def append(self, table: str, row: Mapping[str, object]) -> None:
        """Append a row; it is written at the next flush."""
        if self._unwritten >= _MOST_UNWRITTEN:
            self._faults.note_once(table, self.steps, f"{_MOST_UNWRITTEN} rows wait for the disk already", ["rows"])
            return
        with self._guarded(table):
            self._store.append(table, row)
            self._unwritten += 1

    def flush(self, *, due: bool = False) -> None:
        """Write the rows, and the missing values if there are new ones.

        Args:
            due: True to write only if nothing was written in the last second.
        """
        if self._store.closed or time.monotonic() < self._retry:
            return
        with self._guarded("files"):
            if due and not self._store.flush_due():
                return
            self._retry = time.monotonic() + _RETRY  # until the attempt has succeeded
            with _interrupts_held():
                self.require_folder()
                self._store.flush()
                if self._faults.changed:
                    self._store.update_manifest(**self._facts())
                    self._faults.changed = False
                self._unwritten = 0
                self._retry = float("-inf")

    def flush_abandoned(self) -> None:
        """Write the rows of a recorder that was garbage-collected, where no caller could catch an error (`strict`)."""
        try:
            self.flush()
        except Exception as error:
            say(f"{self.path}: rows could not be written: {reason_of(error)}")

    def update(self, **facts: Any) -> None:
        """Set keys of the manifest."""
        with self._guarded("files"), _interrupts_held():
            self.require_folder()
            self._store.update_manifest(**facts)

    def end(self, status: Status, how: str) -> None:
        """End the run: write everything, and release the folder.

        A second call does nothing, unless the first could not write everything: it tries again to write that end.
        """
        if self.ended and not self.unfinished:
            return
        status, how = self._ending = self._ending or (status, how)
        self.ended, self.error = True, None
        with self._writing():
            self._retry = float("-inf")
            self.flush()
            try:
                self.require_folder()
                self._store.update_manifest(**self._facts(), steps=self.steps, overhead=self._overhead.summary())
            except Exception as error:
                self.error = error
            try:
                self._store.close(status, how)
            except Exception as error:
                self.error = self.error or error
        self.lost = "" if self.error is None else reason_of(self.error)
        if self.lost:
            self._faults.tell(f"the run could not be written to its end: {self.lost}", topic="end")

    def require_folder(self) -> None:
        """Check that the run is still where it was made, as nothing may make its folder again.

        Raises:
            RunError: It was removed or renamed.
        """
        if not (self.path / MANIFEST).exists():
            raise RunError(
                f"{self.path} was removed or renamed while it was recorded: rows from then on are lost; record into "
                "another folder, or close the recorder before"
            )

    def _facts(self) -> dict[str, Any]:
        """Return the keys of the manifest on what could not be recorded."""
        facts: dict[str, Any] = {MISSING_VALUES: self._faults.missing} if self._faults.missing else {}
        return {**facts, "warnings": self._faults.words} if self._faults.words else facts

    @contextmanager
    def _guarded(self, instrument: str) -> Iterator[None]:
        """Note an exception of the block as a missing value; hold back signals meanwhile."""
        with self._writing(), self._faults.guarded(instrument, self.steps):
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Mark the block as one that a signal must not interrupt."""
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before
            if not before and self.when_idle is not None:
                self.when_idle()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C during the block, whose half would be a damaged file; raise KeyboardInterrupt after it.

    A handler of SIGINT other than Python's own stays in place.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    arrived: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if arrived:
        raise KeyboardInterrupt
