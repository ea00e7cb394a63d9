"""Weights of safetensors files as numpy arrays, one tensor at a time. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lossscope.landscape.errors import ConfigError

__all__ = ["SavedTensor", "SavedWeights", "safetensors_weights"]

Array: TypeAlias = NDArray[np.float64]

# dtypes of floating-point numbers that numpy has, and bfloat16: the upper half of a float32
_FLOATS: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True)
class SavedTensor:
    """A tensor of a file, read when it is called for."""

    shape: tuple[int, ...]
    dtype: str  # as the file names it
    read: Callable[[], Array] | None  # float64; None for numbers that are no weights, such as integers


@dataclass(frozen=True)
class SavedWeights:
    """Tensors by name, and where they come from."""

    name: str
    source: Path
    tensors: Mapping[str, SavedTensor]
    aliases: Mapping[str, str] = field(default_factory=dict)  # further names of tensors, of tied weights

    def of(self, name: str) -> SavedTensor:
        """Return the tensor of a name, which may be a further one."""
        return self.tensors[self.aliases.get(name, name)]


def safetensors_weights(file: Path, name: str) -> SavedWeights:
    """Return the tensors of a safetensors file; the numbers are read one tensor at a time.

    Args:
        file: The file.
        name: Its name in reports.

    Raises:
        ConfigError: There is no such file, it is damaged, or it is of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ConfigError(f"there is no file of weights at {file}")
    try:
        with safe_open(file, framework="np"):  # checks the header and all offsets
            pass
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"{file} cannot be read as safetensors: {reason}") from error
    found = {key: _tensor(file, 8 + length, entry) for key, entry in header.items() if key != "__metadata__"}
    return SavedWeights(name, file, found)


def _tensor(file: Path, begin: int, entry: Mapping[str, Any]) -> SavedTensor:
    """Return a tensor of a file from its entry in the header."""
    shape, kind = tuple(map(int, entry["shape"])), str(entry["dtype"])
    if kind not in _FLOATS:
        return SavedTensor(shape, kind, None)
    place = begin + int(entry["data_offsets"][0])

    def read() -> Array:
        """Read the numbers as float64."""
        stored = np.fromfile(file, _FLOATS[kind], count=prod(shape), offset=place)
        if kind == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        found: Array = stored.astype(np.float64).reshape(shape)
        return found

    return SavedTensor(shape, kind, read)
