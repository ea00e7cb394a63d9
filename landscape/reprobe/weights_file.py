"""Weights of files that other programs saved: state dicts of torch (weights only) and safetensors."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.recording.checkpoints import name_prefixes
from lossscope.landscape.storage.weight_arrays import Array, SavedTensor, SavedWeights

__all__ = ["ENDINGS", "fit_weights", "read_weights", "saved_arrays"]

ENDINGS: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_WRAPPERS: Final = ("model", "state_dict", "model_state_dict", "module", "net", "weights")
_LISTED: Final = 3
_GLOBAL: Final = re.compile(r"GLOBAL ([\w.]{1,100}) was not an allowed global")
# what reading a damaged pickle raises, by the place of the damage
_DAMAGED: Final = (
    *(RuntimeError, EOFError, OSError, ValueError, KeyError, struct.error),
    *(IndexError, AttributeError, TypeError, AssertionError, OverflowError, MemoryError),
)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU. Nothing in it is run.

    Args:
        file: A state dict that `torch.save` wrote, alone or as an entry such as `model` or `state_dict` of a
            dictionary, or a safetensors file.

    Returns:
        The tensors, with the names that the file has.

    Raises:
        ConfigError: There is no such file, it is damaged, it holds pickled objects other than tensors, or no weights.
    """
    if not file.is_file():
        raise ConfigError(f"there is no file of weights at {file}")
    if file.suffix not in ENDINGS:
        raise ConfigError(f"{file} must be a file of weights, ending in {', '.join(ENDINGS)}")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read as safetensors: {_line(error)}") from error
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))
        raise ConfigError(
            f"{file} holds more than tensors, and loading it could run code{f' ({named[1]})' if named else ''}: save "
            "model.state_dict() alone, or as safetensors"
        ) from error
    except _DAMAGED as error:
        raise ConfigError(f"{file} cannot be read as a file of torch: {_line(error)}") from error
    return _state(found, file)


def saved_arrays(file: Path, name: str) -> SavedWeights:
    """Return the tensors of a file as arrays; tied ones once, with their further names.

    Args:
        file: As for `read_weights`.
        name: Its name in reports.

    Raises:
        ConfigError: As for `read_weights`.
    """
    kept: dict[tuple[object, ...], str] = {}
    aliases, tensors = {}, {}
    for key, tensor in read_weights(file).items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in kept:
            aliases[key] = kept[place]
            continue
        kept[place] = key
        read = partial(_as_float64, tensor) if tensor.is_floating_point() else None
        tensors[key] = SavedTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)
    return SavedWeights(name, file, tensors, aliases)


def fit_weights(saved: Mapping[str, Tensor], model: nn.Module, source: Path | str) -> str:
    """Load weights into a model whose names they have, but for a prefix that one side lacks.

    Args:
        saved: Tensors by name.
        model: The model; it is changed only if everything fits.
        source: Where they come from, for messages.

    Returns:
        A sentence about prefixes that were ignored; empty if there were none.

    Raises:
        ConfigError: A tensor is missing, is one too many, or has another shape.
    """
    wanted = model.state_dict()
    ours, theirs = name_prefixes(saved, wanted)
    named = {theirs + name.removeprefix(ours): tensor for name, tensor in saved.items()}
    tied = {name for name in wanted if name not in named and _is_tied(name, wanted, named)}
    missing = [name for name in wanted if name not in named and name not in tied]
    unknown = [name for name in named if name not in wanted]
    if missing or unknown:
        difference = f"{_difference(missing, unknown)}{_nearest_prefix(saved, wanted)}"
        raise ConfigError(f"the weights of {source} do not fit the model: {difference}")
    for name, tensor in named.items():
        if tensor.shape != wanted[name].shape:
            raise ConfigError(
                f"the weights of {source} do not fit the model: {name} has the shape {tuple(tensor.shape)}, the model "
                f"{tuple(wanted[name].shape)}"
            )
    model.load_state_dict(named, strict=False)
    if not (ours or theirs):
        return ""
    which = "the file" if ours else "the model"
    return f"the names of {which} begin with {ours or theirs!r} and the others do not: the prefix was ignored"


def _state(found: Any, file: Path) -> dict[str, Tensor]:
    """Return the state dict in what a file holds: all of it, or one of its entries."""
    if isinstance(found, Mapping):
        if found and all(isinstance(one, Tensor) for one in found.values()):
            return _dense(found)
        for key in _WRAPPERS:
            inner = found.get(key)
            if isinstance(inner, Mapping) and inner and all(isinstance(one, Tensor) for one in inner.values()):
                return _dense(inner)
    entries = ", ".join(sorted(map(str, found))[:_LISTED]) if isinstance(found, Mapping) else type(found).__name__
    raise ConfigError(
        f"{file} holds no weights (found {entries or 'nothing'}): need names with tensors, alone or under "
        f"{', '.join(_WRAPPERS)}"
    )


def _dense(tensors: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """Return tensors by name, sparse ones with all their zeros."""
    return {str(name): one if one.layout is torch.strided else one.to_dense() for name, one in tensors.items()}


def _as_float64(tensor: Tensor) -> Array:
    found: Array = tensor.detach().double().numpy()
    return found


def _is_tied(name: str, wanted: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> bool:
    """Return True if a tensor that a file lacks shares its memory with one that it has, as safetensors drop copies."""
    place = wanted[name].data_ptr()
    return any(one in named and wanted[one].data_ptr() == place and one != name for one in wanted)


def _difference(missing: list[str], unknown: list[str]) -> str:
    """Return what is missing or too many, with the nearest name."""
    parts = []
    if missing:
        near = get_close_matches(missing[0], unknown, n=1)
        hint = f" (the file has {near[0]})" if near else ""
        parts.append(f"it lacks {_listed(missing)}{hint}")
    if unknown:
        parts.append(f"the model has no {_listed(unknown)}")
    return ", and ".join(parts)


def _nearest_prefix(saved: Collection[str], wanted: Collection[str]) -> str:
    """Return a clause about the prefix without which most names of one side are names of the other."""
    without = {
        (side, prefix): sum(name.startswith(prefix) and name.removeprefix(prefix) in others for name in names)
        for side, names, others in (("file", saved, wanted), ("model", wanted, saved))
        for prefix in {name[: at + 1] for name in names for at, letter in enumerate(name) if letter == "."}
    }
    best = max(without, key=lambda one: (without[one], len(one[1])), default=None)
    if best is None or without[best] <= sum(name in wanted for name in saved):
        return ""
    return f"; without the prefix {best[1]!r} of the {best[0]}, {without[best]} of {len(wanted)} names fit"


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _line(error: Exception) -> str:
    """Return the first line of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
