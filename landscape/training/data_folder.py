"""Files of a data set in a folder of the user's: found, checked by size and first bytes, and hashed for the run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.storage.files import read_regular, reason

__all__ = ["data_file", "first_of"]

_LARGEST: Final = 2**30  # bytes


def first_of(folder: Path, places: Sequence[str], names: Sequence[str], *, what: str, where_from: str) -> Path:
    """Return the folder, of the given one and those below it, in which all files of a data set lie.

    Args:
        folder: The folder that was given.
        places: Names below it that are looked into, such as that of the archive; "" is the folder itself.
        names: The files.
        what: The data set.
        where_from: Where its files come from.

    Raises:
        ConfigError: They lie in none; the message says what to put where.
    """
    for place in places:
        if all((folder / place / name).is_file() for name in names):
            return folder / place
    absent = [name for name in names if not any((folder / place / name).is_file() for place in places)] or names
    there = "does not exist" if not folder.is_dir() else f"lacks {', '.join(absent[:3])}"
    raise ConfigError(f"--data {folder} {there}: put {', '.join(names)} of {what} there ({where_from})")


def data_file(path: Path, files: dict[str, Mapping[str, Any]], *, size: int | None = None) -> bytes:
    """Return the content of a file, and note its size and hash.

    Args:
        path: The file.
        files: Size and SHA-256 by name, to which those of this one are added.
        size: Bytes that it must have.

    Raises:
        ConfigError: It cannot be read, is empty, or has another size.
    """
    try:
        content = read_regular(path, _LARGEST)
    except (OSError, RunError) as error:
        raise ConfigError(f"--data: {path} cannot be read: {reason(error)}") from error
    if not content or (size is not None and len(content) != size):
        asked = "some" if size is None else f"{size:,}"
        raise ConfigError(f"--data: {path} has {len(content):,} bytes, need {asked}: it is cut or another file")
    files[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return content
