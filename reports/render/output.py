"""Atomic output of text files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.storage.files import atomic_write, reason

__all__ = ["refuse_taken", "write_text"]


def write_text(path: Path, text: str, *, force: bool = False) -> None:
    """Write the text to a temporary file and rename it, so that no reader sees a partial file.

    Args:
        path: File to write; its folder must exist. A link to a regular file stays a link.
        text: Content, written as UTF-8.
        force: Replace an existing regular file. Anything else, such as a device, is never replaced.

    Raises:
        LandscapeError: The file exists or cannot be written.
    """
    refuse_taken(path, force=force)
    atomic_write(path, text.encode())


def refuse_taken(path: Path, *, force: bool) -> None:
    """Raise if a file could not be written, before its content is computed.

    Raises:
        LandscapeError: The file exists and `force` is false, it is no regular file, its parent folder does not exist or
            cannot be written, or its name is too long.
    """
    if os.path.isdir(path):
        raise LandscapeError(f"--output must be a file, got the folder {path}")
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise LandscapeError(f"--output {path}: {reason(error)}; choose another file") from error
    else:
        if not stat.S_ISREG(found.st_mode) and not os.path.isfile(path):
            raise LandscapeError(f"{path} is no regular file, so it is not replaced; choose another --output")
        if not force:
            raise LandscapeError(f"{path} exists; add --force to replace it, or choose another --output")
    if not os.path.isdir(path.parent):
        raise LandscapeError(f"{path.parent} is not a folder; create it first, or choose another --output")
    if not os.access(path.parent, os.W_OK):
        raise LandscapeError(f"{path.parent} cannot be written; choose another --output")
