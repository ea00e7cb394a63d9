"""Atomic output of text files."""

from __future__ import annotations

from pathlib import Path

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.storage.manifest import atomic_write

__all__ = ["refuse_taken", "write_text"]


def write_text(path: Path, text: str, *, force: bool = False) -> None:
    """Write the text to a temporary file and rename it, so that no reader sees a partial file.

    Args:
        path: File to write; its folder must exist.
        text: Content, written as UTF-8.
        force: Replace an existing file.

    Raises:
        LandscapeError: The file exists or cannot be written.
    """
    refuse_taken(path, force=force)
    atomic_write(path, text.encode())


def refuse_taken(path: Path, *, force: bool) -> None:
    """Raise if a file could not be written, before its content is computed.

    Raises:
        LandscapeError: The file exists and `force` is false, it is a folder, or its parent folder does not exist.
    """
    if path.is_dir():
        raise LandscapeError(f"--output must be a file, got the folder {path}")
    if path.exists() and not force:
        raise LandscapeError(f"{path} exists; add --force to replace it, or choose another --output")
    if not path.parent.is_dir():
        raise LandscapeError(f"{path.parent} is not a folder; create it first, or choose another --output")
