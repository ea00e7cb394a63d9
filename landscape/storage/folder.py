"""The folder of a new run: made and locked, or refused without touching what is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.manifest import MANIFEST, check_name
from lossscope.landscape.storage.run_folder import LOCK, RunLock

__all__ = ["claimed_folder", "refuse_unless_free"]


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
