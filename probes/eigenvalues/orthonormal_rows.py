"""Orthonormal rows that grow a few at a time, in ranges of columns: growing copies one range at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.eigenvalues.row_store import SpilledRows
from lossscope.probes.sums import gram

__all__ = ["SPARE", "Array", "OrthonormalRows"]

Array = np.ndarray[Any, Any]
SPARE: Final = 4  # rows for which memory is taken at a time
_WIDTHS: Final = (2**14, 2**22)  # columns of a range, at least and at most
_RANGES: Final = 16  # and their number if both allow it


class OrthonormalRows:
    """Rows `(k, n)` that are orthonormal; the caller sees to it.

    Args:
        like: `(j, n)`, gives length, dtype and device; none of its rows is taken.
        spill: Folder for files that hold the rows in place of memory; None for memory.
    """

    def __init__(self, like: Tensor, spill: Path | None = None) -> None:
        width = min(max(like.shape[1] // _RANGES, _WIDTHS[0]), _WIDTHS[1])
        self._parts = [part.new_empty(0, part.shape[1]) for part in torch.split(like, width, 1)]
        self._files = [] if spill is None else [SpilledRows(spill, part) for part in self._parts]
        self._width = width
        self._like = like[:0]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def matrix(self) -> Tensor:
        """All rows, `(k, n)`: a copy."""
        return torch.cat([part[: self._count] for part in self._parts], 1)

    def append(self, rows: Tensor) -> None:
        """Append rows `(j, n)`."""
        count = self._count + len(rows)
        for place, new in enumerate(torch.split(rows, self._width, 1)):
            part = self._parts[place]
            if count > len(part):
                part = self._grown(place, -(-count // SPARE) * SPARE)
            part[self._count : count] = new
        self._count = count

    def _grown(self, place: int, count: int) -> Tensor:
        """Return a range of columns with place for `count` rows."""
        if self._files:
            part = self._files[place].grow(count)
        else:
            old = self._parts[place]
            part = old.new_empty(count, old.shape[1])
            part[: self._count] = old[: self._count]
        self._parts[place] = part
        return part

    def without(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Project rows `(j, n)` onto the complement.

        Args:
            rows: The rows; they are not changed, and returned themselves if nothing is taken away.

        Returns:
            The projected rows and their coordinates, `(j, k)` in float64.
        """
        if not self._count:
            return rows, torch.zeros(len(rows), 0, dtype=torch.float64)
        coordinates = gram(rows[:, :0], self._like[:0, :0].new_empty(self._count, 0))
        for columns, part in self._ranges():
            coordinates += gram(rows[:, columns], part)
        found, weights = torch.empty_like(rows), coordinates.to(rows)
        for columns, part in self._ranges():
            found[:, columns] = torch.addmm(rows[:, columns], weights, part, alpha=-1)
        return found, coordinates

    def mixed(self, coefficients: Array) -> Tensor:
        """Return combinations of the rows, `(j, n)`, with the columns of `coefficients`, `(k, j)`, as weights."""
        weights = self._weights(coefficients)
        found = self._like.new_empty(len(weights), self._like.shape[1])
        for columns, part in self._ranges():
            found[:, columns] = torch.mm(weights, part)
        return found

    def rotate(self, coefficients: Array) -> None:
        """Replace the rows by combinations of them and release the memory of those that are no longer needed.

        Args:
            coefficients: `(k, j)` with j <= k, orthonormal columns: the weights of each new row.
        """
        weights = self._weights(coefficients)
        for place, (_, part) in enumerate(self._ranges()):
            self._parts[place] = torch.mm(weights, part)
        self._count = len(weights)

    def _weights(self, coefficients: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(coefficients.T)).to(self._like)

    def _ranges(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield each range of columns with these columns of all rows."""
        for place, part in enumerate(self._parts):
            yield slice(place * self._width, (place + 1) * self._width), part[: self._count]
