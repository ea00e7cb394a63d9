"""Run folders: claim one for a new run, and lock it while a process records into it.

A lock file distinguishes a run that is being recorded from one whose process died. Before every write the recorder
checks that the lock file at the path is still the one it holds, so it never writes into a folder that took the place
of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import weakref
from pathlib import Path
from typing import BinaryIO, Final

from filelock import lock_descriptor

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.files import folder_entries, open_regular, open_writable
from lossscope.landscape.storage.manifest import MANIFEST, check_name, write_manifest
from lossscope.landscape.storage.schema import SCHEMA_VERSION

__all__ = ["LOCK", "RunLock", "check_free", "claim_folder", "is_recorded"]

LOCK: Final = ".lock"
_TIMEOUT: Final = 0.5  # seconds; `is_recorded` of another process holds the lock for microseconds
_READERS: Final = 5  # attempts of `is_recorded`: two readers may ask at the same moment
_PROBED: Final = b"\0probe"  # contents of a lock file held by a probe; Windows locks its first byte
_LOCKS: weakref.WeakSet[RunLock] = weakref.WeakSet()  # of this process


def claim_folder(path: Path, *, force: bool) -> RunLock:
    """Create an empty run folder, with its parents, and lock it.

    Args:
        path: The run's folder; its last component is the run's name.
        force: Replace an existing run, also one that a recorder of this process has not closed: that recorder then
            writes nothing any more. Files that are not a run are never removed, nor is a run that another process is
            recording.

    Raises:
        RunError: The name is not allowed, the folder is taken, or it cannot be written.
    """
    check_name(path.name)
    check_free(path, force)
    own = _held_here(path)
    if own is not None:  # a notebook's cell, run again before its recorder was closed
        own.release(superseded=True)
    lock = _create_and_lock(path)
    try:
        check_free(path, force)  # another process may have claimed it between the first check and the lock
        if (path / MANIFEST).is_file():
            _empty(path)
    except BaseException:
        lock.release()
        raise
    return lock


def check_free(path: Path, force: bool) -> None:
    """Check that a new run can be created at a path: it is free, or holds a run that `force` replaces.

    Raises:
        RunError: The path is taken, or the folder cannot be listed.
    """
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isdir(path)):
        raise RunError(f"{path} is a link or a file: choose another name")
    try:
        inside = os.listdir(path) if os.path.exists(path) else []
    except OSError as error:
        raise RunError(f"cannot list {path}: {error.strerror}; choose another folder") from error
    if MANIFEST in inside and os.path.isfile(path / MANIFEST):
        if not force:
            raise RunError(f"{path} already holds a run: use --resume to continue it, --force to replace it")
    elif not all(name == LOCK or name.startswith(f".{MANIFEST}.tmp-") for name in inside):
        raise RunError(f"{path} holds files but no run, so nothing was changed: choose another name")


def is_recorded(folder: Path) -> bool:
    """Return True if a live process is recording into the folder; a process that probes checkpoints does not count.

    Writes nothing; a missing lock file stays missing.
    """
    try:
        file = _lock_to_ask(folder / LOCK)
    except (RunError, OSError):
        return False
    with file:
        try:
            for attempt in range(_READERS):
                if attempt:
                    time.sleep(0.002)
                if lock_descriptor(file.fileno(), blocking=False):
                    return False
            file.seek(1)
            return file.read(len(_PROBED)) != _PROBED[1:]
        except OSError:  # a file system without locks
            return False


class RunLock:
    """Exclusive right to write into an existing folder, until `release` or the end of the process.

    The system drops the lock when the process ends for any reason, so no stale lock can remain. A forked child (a data
    loader's worker) would keep the lock alive, so a child closes its copy at once.

    Args:
        folder: The run's folder, an absolute path.
        probing: The lock is for measurements of saved checkpoints; `is_recorded` then stays False.

    Raises:
        RunError: Another recorder holds the lock, or the folder cannot be locked.
    """

    def __init__(self, folder: Path, *, probing: bool = False) -> None:
        self.folder = folder
        self.process = os.getpid()
        self._probing = probing
        self._superseded = False
        try:
            self._file = open_writable(folder / LOCK)
        except OSError as error:
            raise RunError(f"cannot write into {folder}: {error.strerror}; choose another folder") from error
        try:
            self._acquire()
            self._file.truncate(0)
            if probing:
                self._file.write(_PROBED)
                self._file.flush()
        except BaseException as error:
            with contextlib.suppress(OSError):  # it writes what is buffered, once more in vain
                self._file.close()
            if isinstance(error, OSError):
                raise RunError(f"cannot write into {folder}: {error.strerror}; free some space") from error
            raise
        _LOCKS.add(self)

    def check(self) -> None:
        """Check that this process still holds the lock of the folder at the path.

        Raises:
            RunError: The folder was removed, renamed or replaced, another recorder of this process took its place, or
                this process is a forked child of the one that records.
        """
        if os.getpid() != self.process:
            raise RunError(
                f"{self.folder} is recorded by process {self.process}, which forked this one: only that process writes "
                "the run, so create a recorder with another path here"
            )
        if self._superseded:
            raise RunError(f"{self.folder} was replaced by a newer recorder of this process: use that one")
        if not self.holds(self.folder):
            raise RunError(
                f"{self.folder} is no longer the folder of this recording: it was removed, renamed or replaced, so "
                "nothing is written; restore it, or record to another folder"
            )

    def holds(self, folder: Path) -> bool:
        """Return True if the lock file in a folder is the one that is held."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(folder / LOCK))
        except (OSError, ValueError):  # ValueError: the file is closed
            return False

    def release(self, *, superseded: bool = False) -> None:
        """Release the folder. A second call does nothing.

        Args:
            superseded: A newer recorder of this process takes the folder; `check` then says so.
        """
        if self._file.closed:
            return
        self._superseded = superseded
        if self._probing and os.getpid() == self.process:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
        self._file.close()

    def _acquire(self) -> None:
        """Try to acquire the lock until the timeout, then check that the lock file is still that of the folder."""
        deadline = time.monotonic() + _TIMEOUT
        while not self._locked():
            if _held_here(self.folder) is not None:
                raise RunError(
                    f"{self.folder} is being recorded by this process: close that recorder first, or choose another "
                    "name"
                )
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self.folder} is being recorded by another process: wait for it, or choose another name"
                )
            time.sleep(0.01)
        if not self.holds(self.folder):
            raise RunError(f"{self.folder} was just replaced by another process: try again")

    def _locked(self) -> bool:
        """Try once to acquire the lock."""
        try:
            return lock_descriptor(self._file.fileno(), blocking=False)
        except OSError as error:
            raise RunError(f"cannot lock {self.folder}: {error.strerror}; record to a local disk") from error


def _lock_to_ask(path: Path) -> BinaryIO:
    """Open an existing lock file; for writing where that is allowed, since network file systems lock only then."""
    open_regular(path).close()  # raises if it is missing: a reader creates nothing
    try:
        return open_writable(path)
    except OSError:
        return open_regular(path)


def _held_here(folder: Path) -> RunLock | None:
    """Return the lock that this process holds on a folder; None if it holds none."""
    return next((lock for lock in list(_LOCKS) if lock.process == os.getpid() and lock.holds(folder)), None)


def _create_and_lock(path: Path) -> RunLock:
    """Create the folder if it is missing, and lock it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot create {path}: {error.strerror}; choose another folder") from error
    return RunLock(path)


def _empty(path: Path) -> None:
    """Remove a run from its folder, which stays locked. The manifest says so first and goes last.

    So a folder whose removal was interrupted reads as a failed run, never as an intact one without its rows.
    """
    reason = "it was being replaced when the process ended"
    write_manifest(path, {"schema_version": SCHEMA_VERSION, "status": "failed", "how_it_ended": reason})
    try:
        for entry in folder_entries(path):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in (LOCK, MANIFEST):
                entry.unlink()
        (path / MANIFEST).unlink()
    except OSError as error:
        raise RunError(f"cannot remove the run in {path}: {error.strerror}; choose another name") from error


def _close_in_child() -> None:
    """Close a forked child's copies of the lock files; the parent keeps its locks."""
    for lock in list(_LOCKS):
        lock.release()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_close_in_child)
