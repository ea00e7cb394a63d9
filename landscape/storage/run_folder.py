"""Run folders: claim one for a new run, and lock it while a process records into it.

A lock file distinguishes a run that is being recorded from one whose process died.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import weakref
from pathlib import Path
from typing import Final

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.manifest import MANIFEST, check_name

__all__ = ["LOCK", "RunLock", "check_free", "claim_folder", "is_recorded"]

LOCK: Final = ".lock"
_TIMEOUT: Final = 0.5  # seconds; `is_recorded` of another process holds the lock for microseconds
_LOCKS: weakref.WeakSet[RunLock] = weakref.WeakSet()  # of this process, for `_close_in_child`


def claim_folder(path: Path, *, force: bool) -> RunLock:
    """Create an empty run folder, with its parents, and lock it.

    Args:
        path: The run's folder; its last component is the run's name.
        force: Replace an existing run. Files that are not a run are never removed, nor is a run being recorded.

    Raises:
        RunError: The name is not allowed, the folder is taken, or it cannot be written.
    """
    check_name(path.name)
    check_free(path, force)
    lock = _create_and_lock(path)
    try:
        check_free(path, force)  # another process may have claimed it between the first check and the lock
        if not (path / MANIFEST).exists():
            return lock
        _remove(path)
    except BaseException:
        lock.release()
        raise
    lock.release()
    return claim_folder(path, force=False)


def check_free(path: Path, force: bool) -> None:
    """Check that a new run can be created at a path: it is free, or holds a run that `force` replaces.

    Raises:
        RunError: The path is taken, or the folder cannot be listed.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise RunError(f"{path} is a link or a file: choose another name")
    try:
        inside = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    except OSError as error:
        raise RunError(f"cannot list {path}: {error.strerror}; choose another folder") from error
    if MANIFEST in inside:
        if not force:
            raise RunError(f"{path} already holds a run: use --resume to continue it, --force to replace it")
    elif not all(name == LOCK or name.startswith(f".{MANIFEST}.tmp-") for name in inside):
        raise RunError(f"{path} holds files but no run, so nothing was changed: choose another name")


def is_recorded(folder: Path) -> bool:
    """Return True if a live process is recording into the folder. Writes nothing; a missing lock file stays missing."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class RunLock:
    """Exclusive right to record into an existing folder, until `release` or the end of the process.

    The kernel drops an `flock` when the process ends for any reason, so no stale lock can remain. A forked child (a
    data loader's worker) would keep the lock alive, so a child closes its copy at once.

    Args:
        folder: The run's folder.

    Raises:
        RunError: Another recorder holds the lock, or the folder cannot be locked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._file = (folder / LOCK).open("ab")
        except OSError as error:
            raise RunError(f"cannot write into {folder}: {error.strerror}; choose another folder") from error
        try:
            self._acquire()
        except BaseException:
            self._file.close()
            raise
        _LOCKS.add(self)

    def release(self) -> None:
        """Release the folder. A second call does nothing."""
        self._file.close()

    def _acquire(self) -> None:
        """Try to acquire the lock until the timeout, then check that the lock file is still that of the folder."""
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"{self.folder} is being recorded by another process: wait for it, or choose another name"
                    ) from None
                time.sleep(0.01)
            except OSError as error:
                raise RunError(f"cannot lock {self.folder}: {error.strerror}; record to a local disk") from error
        if not _same_file(self._file.fileno(), self.folder / LOCK):
            raise RunError(f"{self.folder} was just replaced by another process: try again")


def _create_and_lock(path: Path) -> RunLock:
    """Create the folder if it is missing, and lock it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot create {path}: {error.strerror}; choose another folder") from error
    return RunLock(path)


def _remove(path: Path) -> None:
    """Remove a run. It is renamed first, so that a partly removed folder cannot be mistaken for a run."""
    aside = path.with_name(f".{path.name}.removed-{os.getpid()}")
    try:
        path.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise RunError(f"cannot remove the run in {path}: {error.strerror}; choose another name") from error


def _same_file(descriptor: int, path: Path) -> bool:
    """Return True if an open file is still the file at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _close_in_child() -> None:
    """Close a forked child's copies of the lock files; the parent keeps its locks."""
    for lock in list(_LOCKS):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)
