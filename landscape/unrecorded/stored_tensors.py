"""Tensors of a checkpoint as arrays of numpy: safetensors without torch, files of torch with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.storage.weight_arrays import safetensors_weights
from lossscope.landscape.unrecorded.sources import Checkpoint

__all__ = ["StoredTensor", "stored_tensors", "without_wrappers"]

Array = npt.NDArray[np.floating[Any]]

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
    """Yield the tensors of a safetensors file, each read when it is used."""
    for name, saved in safetensors_weights(file, file.name).tensors.items():
        yield StoredTensor(name, saved.shape, saved.dtype, saved.read is not None, saved.read or _nothing)


def _nothing() -> Array:
    """Return no numbers, for a tensor of numbers that are no weights."""
    return np.zeros(0)


def _of_torch(file: Path, notes: list[str]) -> Iterator[StoredTensor]:
    """Yield the tensors of a file of torch; those that share memory once."""
    from lossscope.landscape.unrecorded.torch_weights import distinct, numbers, read_weights

    tensors, shared = distinct(read_weights(file))
    for kept, names in shared.items():
        notes.append(f"{', '.join(names)} share memory with {kept} and count once")
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        yield StoredTensor(name, tuple(tensor.shape), dtype, tensor.is_floating_point(), partial(numbers, tensor))
