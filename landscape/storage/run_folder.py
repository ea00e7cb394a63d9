"""The lock that tells a run being recorded from one whose process died."""

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

__all__ = ["LOCK", "RunLock", "claimed_folder", "is_recorded", "refuse_unless_free"]

LOCK: Final = ".lock"
_PATIENCE: Final = 0.5  # seconds; a reader holds the lock for microseconds while it asks
_HELD: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """The exclusive right to record into a folder, until `release` or the end of the process.

    The kernel drops an `flock` with the process, however it dies, so no stale lock can be left behind. It would
    live on in a forked child (a data loader's worker), so a child closes its copy at once.

    Raises:
        RunError: Another recorder has it, or the folder cannot be locked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._file = (folder / LOCK).open("ab")
        except OSError as error:
            raise RunError(f"cannot write into {folder}: {error.strerror}; choose another folder") from error
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise
        _HELD.add(self)

    def release(self) -> None:
        """Let go of the folder; a second call does nothing."""
        self._file.close()

    def _take(self) -> None:
        """Ask for the lock until patience ends, then make sure that it is still the folder's."""
        deadline = time.monotonic() + _PATIENCE
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
            raise RunError(f"{self.folder} was replaced by another process just now: try again")


def is_recorded(folder: Path) -> bool:
    """Whether a live process is recording into the folder. Writes nothing, not even an absent lock file."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _close_in_child() -> None:
    """Close a forked child's copies; closing a copy leaves the parent's lock in place."""
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)


def claimed_folder(path: Path, *, force: bool) -> RunLock:
    """The lock of a new, empty folder at `path`; parents are made as needed.

    Args:
        path: Where the run is to be; its last component is the run's name.
        force: Replace a run that is there. Anything that is not a run stays, and so does a run being recorded.

    Raises:
        RunError: The name is not allowed, the place is taken, or it cannot be written.
    """
    check_name(path.name)
    refuse_unless_free(path, force)
    lock = _locked(path)
    try:
        refuse_unless_free(path, force)  # another process may have been faster
        if not (path / MANIFEST).exists():
            return lock
        _remove(path)
    except BaseException:
        lock.release()
        raise
    lock.release()
    return claimed_folder(path, force=False)


def refuse_unless_free(path: Path, force: bool) -> None:
    """Refuse a place that is taken: by a run, unless `force` replaces it, or by anything else.

    Raises:
        RunError: It is taken, or cannot be looked into.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise RunError(f"{path} is a link or a file: choose another name")
    try:
        inside = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    except OSError as error:
        raise RunError(f"cannot look into {path}: {error.strerror}; choose another folder") from error
    if MANIFEST in inside:
        if not force:
            raise RunError(f"{path} holds a run already: --resume goes on with it, --force replaces it")
    elif not all(name == LOCK or name.startswith(f".{MANIFEST}.tmp-") for name in inside):
        raise RunError(f"{path} holds files but no run, so nothing was touched: choose another name")


def _locked(path: Path) -> RunLock:
    """The lock of the folder, made if absent."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {path}: {error.strerror}; choose another folder") from error
    return RunLock(path)


def _remove(path: Path) -> None:
    """Remove a run: renamed first, so that no half of it can be taken for a run."""
    aside = path.with_name(f".{path.name}.removed-{os.getpid()}")
    try:
        path.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise RunError(f"cannot remove the run in {path}: {error.strerror}; choose another name") from error
