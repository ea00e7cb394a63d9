"""A text written to a file, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.storage.manifest import atomic_write

__all__ = ["refuse_taken", "write_text"]


def write_text(path: Path, text: str, *, force: bool = False) -> None:
    """Write the text beside its place and rename it there, so that no reader ever sees half of it.

    Args:
        path: where; its folder must exist.
        text: what to write, as UTF-8.
        force: replace a file that is there.

    Raises:
        LandscapeError: the place is taken or cannot be written.
    """
    refuse_taken(path, force=force)
    atomic_write(path, text.encode())


def refuse_taken(path: Path, *, force: bool) -> None:
    """Raise where a file could not be written, before the work that fills it is done.

    Raises:
        LandscapeError: the file exists and `force` is not given, it is a folder, or its own folder does not exist.
    """
    if path.is_dir():
        raise LandscapeError(f"{path} is a folder; give --output the name of a file in it")
    if path.exists() and not force:
        raise LandscapeError(f"{path} exists; add --force to replace it, or choose another --output")
    if not path.parent.is_dir():
        raise LandscapeError(f"{path.parent} is no folder; make it first, or choose another --output")
