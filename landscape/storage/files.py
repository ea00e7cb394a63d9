"""Files on disk: regular files are read up to a bound and replaced atomically; anything else is a clear error.

Opening a pipe waits for its other end, reading a device may never end, and a link may lead nowhere. So the kind of
every file is checked before it is read or replaced.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lossscope.landscape.errors import RunError

__all__ = [
    "atomic_write",
    "folder_entries",
    "open_regular",
    "open_writable",
    "read_regular",
    "reason",
    "remedy",
    "temporary_files",
]

# Windows has no O_NONBLOCK, POSIX no O_BINARY.
_READ: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_WRITE: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_REFUSALS: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_LONGEST_STEM: Final = 60  # characters of a file's name in that of its temporary file, below every file system's limit
_KINDS: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, to read it. Never waits.

    Raises:
        FileNotFoundError: There is nothing at the path.
        NotADirectoryError: Something above it is no folder.
        RunError: It is no regular file (a pipe, a device, a folder, a link to nothing), or it cannot be opened.
    """
    try:
        _require_regular(path, os.stat(path))  # first: opening a device may already have an effect
        return os.fdopen(_opened(path, _READ), "rb")
    except FileNotFoundError:
        if os.path.islink(path):
            raise RunError(f"{path} is a link to nothing: restore the file, or remove the link") from None
        raise
    except NotADirectoryError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise RunError(f"cannot read {path}: {reason(error)}; {remedy(error)}") from error


def read_regular(path: Path, limit: int) -> bytes:
    """Return the contents of a regular file of at most `limit` bytes.

    Raises:
        FileNotFoundError, NotADirectoryError, RunError: As in `open_regular`.
        RunError: The file is longer.
    """
    with open_regular(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}; check the disk") from error
    if len(data) > limit:
        size = max(len(data), os.stat(path).st_size)
        raise RunError(f"{path} has {size:,} bytes, at most {limit:,} are read: restore it, or move it away")
    return data


def open_writable(path: Path) -> io.BufferedRandom:
    """Open a regular file to read and write it, after creating it if it is missing.

    Raises:
        OSError: It cannot be opened.
        RunError: It is no regular file.
    """
    try:
        _require_regular(path, os.stat(path))
    except FileNotFoundError:
        if os.path.islink(path):  # else the file would be created wherever it leads
            raise RunError(f"{path} is a link to nothing: restore the file, or remove the link") from None
    return os.fdopen(_opened(path, _WRITE), "r+b")


def folder_entries(path: Path) -> list[Path]:
    """Return what lies in a folder, sorted by name; nothing if it does not exist.

    Raises:
        RunError: It is no folder, or cannot be listed.
    """
    try:
        return sorted(path / name for name in os.listdir(path))
    except FileNotFoundError:
        if os.path.islink(path):
            raise RunError(f"{path} is a link to nothing: restore the folder, or remove the link") from None
        return []
    except (OSError, ValueError) as error:
        raise RunError(f"cannot list {path}: {reason(error)}; {remedy(error)}") from error


def reason(error: Exception) -> str:
    """Return the reason that an error of the file system gives."""
    return str(getattr(error, "strerror", None) or error)


def remedy(error: Exception) -> str:
    """Return the way out of an error of the file system."""
    number = getattr(error, "errno", None)
    if number == errno.ENAMETOOLONG:
        return "choose a shorter path"
    if number == errno.ENOSPC:
        return "free some space"
    return "check its permissions" if number in _REFUSALS else "check the path"


def atomic_write(path: Path, content: bytes) -> None:
    """Replace a regular file atomically: write a temporary file beside it, sync it to disk, then rename it.

    A link to a regular file stays a link; the file behind it is replaced.

    Raises:
        RunError: The disk is full, the folder cannot be written or is missing, or the path is no regular file (a
            device, a pipe, a folder, a link to nothing). The old file is unchanged.
    """
    path = _target(path)
    aside = path.with_name(f"{_temporary_prefix(path)}{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except BaseException as error:  # an interrupt too: no temporary file stays behind
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(
                f"cannot write {path}: {error.strerror}; free some space or choose another folder"
            ) from error
        raise


def temporary_files(path: Path) -> list[Path]:
    """Return the temporary files that killed processes left beside a path."""
    return [one for one in folder_entries(path.parent) if one.name.startswith(_temporary_prefix(path))]


def _temporary_prefix(path: Path) -> str:
    """Return the beginning of the names of a path's temporary files."""
    return f".{path.name[:_LONGEST_STEM]}.tmp-"


def _target(path: Path) -> Path:
    """Return the path of the file to replace, behind a link if there is one."""
    try:
        _require_regular(path, os.stat(path))
        return Path(os.path.realpath(path, strict=True)) if os.path.islink(path) else path
    except FileNotFoundError:
        if os.path.islink(path):
            raise RunError(f"{path} is a link to nothing: choose another name") from None
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; choose another name") from error
    return path


def _opened(path: Path, flags: int) -> int:
    """Return the descriptor of a file, after checking its kind again in case it was replaced in between."""
    descriptor = os.open(path, flags, 0o666)
    try:
        _require_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(path: Path, status: os.stat_result) -> None:
    """Raise RunError for anything but a regular file."""
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for test, words in _KINDS if test(status.st_mode)), "no file")
        raise RunError(f"{path} is {kind}, not a regular file: move it away, or choose another path")


def _sync_folder(folder: Path) -> None:
    """Sync the folder, so that a rename is on disk before anything that relies on it. Windows cannot open a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
