"""Rows of the matrices and norms of one checkpoint, computed from its tensors without a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lossscope.landscape.measures.spectrum_columns import spectrum_columns
from lossscope.landscape.unrecorded.stored_tensors import StoredTensor
from lossscope.probes.errors import ProbeError
from lossscope.probes.step_tensors.matrix_spectrum import stored_spectrum

__all__ = ["MATRICES", "matrix_rows", "matrix_shapes"]

Row: TypeAlias = Mapping[str, Any]
Array = npt.NDArray[np.floating[Any]]

MATRICES: Final = "matrices"  # what is measured without a loss, beside the groups of the catalogue
_BLOCK: Final = 2**20  # entries that are converted to float64 at a time


def matrix_rows(
    tensors: Sequence[StoredTensor], step: int, tell: Callable[[str], None]
) -> tuple[list[tuple[str, Row]], dict[str, str]]:
    """Return rows of the tables `spectra`, `tensors` and `steps`, and the reasons why some tensors have none.

    A matrix is a tensor of two dimensions or more: one of three is a stack of them, one of more is flattened behind
    its first dimension, as in a recorded run.

    Args:
        tensors: The parameters.
        step: Step of the checkpoint.
        tell: Called with the name of each tensor before it is read.
    """
    rows: list[tuple[str, Row]] = []
    squares: list[float] = []
    absent: dict[str, str] = {}
    for tensor in tensors:
        if not tensor.is_floating or not tensor.is_parameter:
            if not tensor.is_floating and len(tensor.shape) > 1:
                absent[tensor.name] = f"it holds numbers of type {tensor.dtype}, which have no spectrum here"
            continue
        tell(tensor.name)
        array = tensor.read()
        norm = _norm(array)
        squares.append(norm**2)
        track = "matrix" if array.ndim >= 2 else "vector"
        rows.append(("tensors", {"step": step, "tensor": tensor.name, "track": track, "weight_norm": _finite(norm)}))
        try:
            rows += [("spectra", {"step": step, **row}) for row in _spectra(tensor.name, array)]
        except ProbeError as error:
            absent[tensor.name] = str(error)
    whole = all(tensor.is_floating or len(tensor.shape) < 2 for tensor in tensors)
    weight_norm = _finite(math.sqrt(math.fsum(squares))) if whole else None
    return [*rows, ("steps", {"step": step, "weight_norm": weight_norm})], absent


def matrix_shapes(tensors: Iterable[StoredTensor]) -> Iterator[tuple[int, int]]:
    """Yield the shape of each matrix that `matrix_rows` decomposes, once for each in a stack."""
    for tensor in tensors:
        if tensor.is_floating and len(tensor.shape) >= 2 and 0 not in tensor.shape:
            count, *shape = tensor.shape if len(tensor.shape) == 3 else (1, *_flat(tensor.shape))
            yield from [(shape[0], shape[1])] * count


def _spectra(name: str, array: Array) -> Iterator[Row]:
    """Yield a row for each matrix in a tensor."""
    if array.ndim < 2 or not array.size:
        return
    stack = array if array.ndim == 3 else array.reshape(1, *_flat(array.shape))
    for index, matrix in enumerate(stack):
        columns = spectrum_columns(stored_spectrum(matrix))
        yield {"tensor": name, "slice": index if array.ndim == 3 else None, "object": "weight", **columns}


def _flat(shape: Sequence[int]) -> tuple[int, int]:
    """Return the shape of a tensor that is flattened behind its first dimension."""
    return shape[0], math.prod(shape[1:])


def _norm(array: Array) -> float:
    """Return the Euclidean norm, added up in float64."""
    flat = array.reshape(-1)
    blocks = (flat[at : at + _BLOCK].astype(np.float64) for at in range(0, flat.size, _BLOCK))
    return math.sqrt(math.fsum(float(np.square(block).sum()) for block in blocks))


def _finite(value: float) -> float | None:
    """Return a number, or None if it is not finite."""
    return value if math.isfinite(value) else None
