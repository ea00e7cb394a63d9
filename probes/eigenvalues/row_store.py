"""Storage for the rows of a basis: memory, or a file that is mapped into it."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError

__all__ = ["SpilledRows", "check_spill_folder"]

_BLOCK: Final = 2**24  # bytes written at a time to reserve disk where the system has no call for it


class SpilledRows:
    """Rows in an unnamed file that grows; it vanishes with this object, or with the process.

    Args:
        folder: Folder of the file.
        like: `(j, n)`, gives length and dtype.
    """

    def __init__(self, folder: Path, like: Tensor) -> None:
        self._folder, self._like = folder, like[:0]
        self._file: IO[bytes] | None = None
        self.rows = like.new_empty(0, like.shape[1])

    def grow(self, count: int) -> Tensor:
        """Reserve disk for `count` rows and return them as a tensor; what was written stays.

        Raises:
            ProbeError: The disk is full, or the folder cannot be written.
        """
        size = count * self._like.shape[1] * self._like.element_size()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (it lives as long as the rows)
                weakref.finalize(self, self._file.close)
            _reserve(self._file.fileno(), size)
            mapped: Any = np.memmap(self._file, dtype=np.uint8, mode="r+", shape=(size,))
        except OSError as error:
            raise ProbeError(
                f"the basis could not be spilled: {size} bytes in {self._folder} gave '{error.strerror or error}'; "
                "free the disk, name another folder, or leave spill= out"
            ) from error
        self.rows = torch.from_numpy(mapped).view(self._like.dtype).view(count, self._like.shape[1])
        return self.rows


def check_spill_folder(folder: str | Path) -> Path:
    """Return the folder.

    Raises:
        ProbeError: It is no folder that can be written.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ProbeError(f"spill must be an existing folder for the basis, got {str(folder)!r}: create it first")
    if not os.access(path, os.W_OK | os.X_OK):
        raise ProbeError(f"spill must be a folder that can be written, got {str(folder)!r}: change its permissions")
    return path.absolute()


def _reserve(descriptor: int, size: int) -> None:
    """Reserve disk for a file, so that a full disk is an error here and not a signal when it is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    present = os.fstat(descriptor).st_size
    with os.fdopen(os.dup(descriptor), "r+b") as file:
        file.seek(present)
        while present < size:
            present += file.write(bytes(min(_BLOCK, size - present)))
