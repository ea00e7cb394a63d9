"""Tensors of a checkpoint as arrays of numpy: safetensors without torch, files of torch with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.unrecorded.sources import Checkpoint

__all__ = ["StoredTensor", "stored_tensors", "without_wrappers"]

Array = npt.NDArray[np.floating[Any]]

_LONGEST_HEADER: Final = 10**8  # bytes, as in the format
_FLOATING: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # names of safetensors
_WRAPPERS: Final = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_STATISTICS: Final = ("running_mean", "running_var", "num_batches_tracked")  # buffers of BatchNorm, no parameters


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, read when it is used."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # in the words of its file
    is_floating: bool  # real numbers that numpy can hold; the others have no spectrum
    read: Callable[[], Array]  # float16, float32 or float64, on the host

    @property
    def is_parameter(self) -> bool:
        """True unless it is a statistic of BatchNorm; other buffers cannot be told from parameters by a file."""
        return self.name.rpartition(".")[2] not in _STATISTICS


def stored_tensors(checkpoint: Checkpoint) -> tuple[list[StoredTensor], list[str]]:
    """Return the tensors of a checkpoint, each memory once, and sentences about them.

    Args:
        checkpoint: One file, or shards.

    Raises:
        ConfigError: A file is damaged or holds pickled objects, or two shards have a tensor of the same name.
    """
    found: dict[str, StoredTensor] = {}
    notes: list[str] = []
    for file in checkpoint.files:
        for tensor in _of_safetensors(file) if file.suffix == ".safetensors" else _of_torch(file, notes):
            if tensor.name in found:
                raise ConfigError(f"{checkpoint.path} has the tensor {tensor.name} in two shards: download it again")
            found[tensor.name] = tensor
    prefix, tensors = without_wrappers(found)
    if prefix:
        notes.append(f"the names of the files begin with {prefix!r}, which was left out")
    return [replace(tensor, name=name) for name, tensor in tensors.items()], notes


def without_wrappers(named: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the prefix that a wrapper gave to all names, `module.` or `_orig_mod.`, and the values by the others."""
    prefix, names = "", list(named)
    while names:
        wrapper = next((one for one in _WRAPPERS if all(name.startswith(one) for name in names)), None)
        if wrapper is None:
            break
        prefix, names = prefix + wrapper, [name.removeprefix(wrapper) for name in names]
    return prefix, dict(zip(names, named.values(), strict=True))


def _of_safetensors(file: Path) -> Iterator[StoredTensor]:
    """Yield the tensors of a safetensors file, mapped into memory. The library has no bfloat16 without torch."""
    header, start = _header(file)
    data = np.memmap(file, np.uint8, "r", start) if file.stat().st_size > start else np.zeros(0, np.uint8)
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(facts["dtype"]), tuple(int(size) for size in facts["shape"])
            begin, end = (int(place) for place in facts["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file} is no safetensors file: its header has no place for {name}") from error
        code = _FLOATING.get(dtype)
        size = None if code is None else math.prod(shape) * np.dtype(code).itemsize
        if not 0 <= begin <= end <= len(data) or min(shape, default=0) < 0 or size not in (None, end - begin):
            raise ConfigError(f"{file} is truncated or damaged at {name}: copy or download it again")
        part = data[begin:end]
        yield StoredTensor(name, shape, dtype, code is not None, partial(_decoded, part, shape, code or ""))


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and where its data begin."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            text = opened.read(length) if length <= _LONGEST_HEADER else b""
        header = json.loads(text) if len(text) == length else None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ConfigError(f"{file} is no safetensors file, or is truncated: copy or download it again")
    return header, 8 + length


def _decoded(part: npt.NDArray[np.uint8], shape: tuple[int, ...], code: str) -> Array:
    """Return the numbers of a part of a file; bfloat16 is the upper half of float32."""
    if code == "<u2":
        return (part.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    array: Array = part.view(code).reshape(shape)
    return array


def _of_torch(file: Path, notes: list[str]) -> Iterator[StoredTensor]:
    """Yield the tensors of a file of torch; those that share memory once."""
    from lossscope.landscape.unrecorded.torch_weights import distinct, numbers, read_weights

    tensors, shared = distinct(read_weights(file))
    for kept, names in shared.items():
        notes.append(f"{', '.join(names)} share memory with {kept} and count once")
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        yield StoredTensor(name, tuple(tensor.shape), dtype, tensor.is_floating_point(), partial(numbers, tensor))
