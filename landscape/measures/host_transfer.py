"""Copy all device tensors in a batch of rows to the host with one synchronization per device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["Row", "to_host"]

Row = dict[str, Any]
_FEW: Final = 4  # numbers in the host's memory up to which reading each is faster than joining them


def to_host(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with floats and arrays in place of tensors, copied at once from each device."""
    fetched: dict[tuple[int, str], Any] = {}
    for device, found in _by_device(rows).items():
        if device.type == "cpu" and len(found) <= _FEW and not any(row[key].ndim for row, key in found):
            fetched |= {(id(row), key): float(row[key].detach()) for row, key in found}
            continue
        flat = torch.cat([row[key].detach().reshape(-1).double() for row, key in found]).cpu().numpy()
        start = 0
        for row, key in found:
            count, shape = row[key].numel(), tuple(row[key].shape)
            part = flat[start : start + count]
            fetched[id(row), key] = part.reshape(shape) if shape else float(part[0])
            start += count
    return [{key: fetched.get((id(row), key), value) for key, value in row.items()} for row in rows]


def _by_device(rows: Sequence[Row]) -> dict[torch.device, list[tuple[Row, str]]]:
    """Return the places of the tensors in rows by device."""
    found: dict[torch.device, list[tuple[Row, str]]] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, Tensor):
                found.setdefault(value.device, []).append((row, key))
    return found
