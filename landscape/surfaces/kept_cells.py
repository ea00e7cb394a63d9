"""Finished lines of a picture on disk, so that a call that was stopped can be continued."""

from __future__ import annotations

import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from lossscope.landscape.errors import RunError
from lossscope.landscape.storage.files import atomic_write, read_regular
from lossscope.landscape.surfaces.pictures import Array

__all__ = ["KeptCells"]

_SECONDS: Final = 2.0  # between two writes; a picture that takes less leaves nothing
_BYTES: Final = 2**30  # of a file, at most


class KeptCells:
    """Losses of the lines of one picture; what is finished is written every two seconds and at the end.

    Enter it while lines are added: at its end, or at an exception, all that is finished is on disk, unless it took less
    than two seconds.

    Args:
        folder: The folder, which is made; None to write nothing.
        key: Name of the picture, of which another one has another name.
        shape: Number of lines, and of points on each.

    Raises:
        RunError: What the folder has under this name cannot be read.
    """

    def __init__(self, folder: Path | None, key: str, shape: tuple[int, int]) -> None:
        self.losses: Array = np.full(shape, np.nan)
        self.done: NDArray[np.bool_] = np.zeros(shape[0], dtype=np.bool_)
        self.block: int | None = None  # number of points evaluated at once; None until it is chosen
        self._file = None if folder is None else folder / f"{key}.npz"
        self._begun = self._written = time.monotonic()
        if self._file is not None and self._file.exists():
            self._read(self._file)

    def add(self, number: int, losses: Array) -> None:
        """Keep a finished line.

        Args:
            number: Number of the line.
            losses: `(k,)`, its losses.
        """
        self.losses[number], self.done[number] = losses, True
        if time.monotonic() - self._written > _SECONDS:
            self._write()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Write what is finished."""
        if self.done.any() and time.monotonic() - self._begun > _SECONDS:
            self._write()

    def _write(self) -> None:
        """Write all lines, whole or not at all."""
        if self._file is None:
            return
        buffer = BytesIO()
        np.savez(buffer, losses=self.losses, done=self.done, block=np.array(self.block or 0))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self._file, buffer.getvalue())
        self._written = time.monotonic()

    def _read(self, file: Path) -> None:
        """Read the lines of an earlier call."""
        try:
            with np.load(BytesIO(read_regular(file, _BYTES)), allow_pickle=False) as found:
                losses, done, block = found["losses"], found["done"], int(found["block"])
        except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise RunError(f"{file} has no cells of a picture ({type(error).__name__}): remove it") from error
        if losses.shape != self.losses.shape or done.shape != self.done.shape or losses.dtype != self.losses.dtype:
            raise RunError(f"{file} has the cells of another picture: remove it")
        self.losses, self.done, self.block = losses, done.astype(np.bool_), block
