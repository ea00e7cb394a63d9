"""Bound on the disk space of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import ConfigError

__all__ = ["byte_count", "checkpoint_bytes", "expected_bytes", "stored_bytes"]

_UNITS: Final = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
_FORMAT: Final = 16_384  # bytes of the random state, of headers and of settings, usually at most
_STATE_COPIES: Final = 2  # copies of the parameters that an optimizer's state has, usually at most


def byte_count(given: int | str, argument: str) -> int:
    """Return a number of bytes that was given as a number or as text such as "2GB" or "500 MiB".

    Args:
        given: The value.
        argument: Name of the argument, for the message.

    Raises:
        ConfigError: The value is not such a number or text, or not positive.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", given) if isinstance(given, str) else None
    if isinstance(given, int) and not isinstance(given, bool):
        size = given
    elif found is not None and found[2].upper() in _UNITS:
        size = int(float(found[1]) * _UNITS[found[2].upper()])
    else:
        size = 0
    if size < 1:
        raise ConfigError(f'{argument} must be a positive number of bytes or text such as "2GB", got {given!r}')
    return size


def expected_bytes(model: nn.Module) -> int:
    """Return the size in bytes of a checkpoint, if the optimizer's state has two copies of the trained parameters."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return _FORMAT + _bytes([*model.parameters(), *model.buffers()]) + _STATE_COPIES * trained


def checkpoint_bytes(model: nn.Module, optimizers: Iterable[Optimizer]) -> int:
    """Return the size in bytes of a checkpoint of the model and of the optimizers' present state."""
    weights = _bytes([*model.parameters(), *model.buffers()])
    return _FORMAT + weights + sum(_state_bytes(one.state) for one in optimizers)


def stored_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 if there is no such folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _state_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_state_bytes, value.values()))
    return sum(map(_state_bytes, value)) if isinstance(value, list | tuple) else 0


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, those that occur twice counted once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())
