"""Copy all device tensors in a batch of rows to the host with one synchronization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Row", "to_host"]

Row = dict[str, Any]


def to_host(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with floats and arrays in place of tensors, copied from the device at once."""
    found = [(row, key) for row in rows for key, value in row.items() if isinstance(value, Tensor)]
    if not found:
        return list(rows)
    flat = torch.cat([row[key].detach().reshape(-1).double() for row, key in found]).cpu().numpy()
    fetched: dict[tuple[int, str], Any] = {}
    start = 0
    for row, key in found:
        count, shape = row[key].numel(), tuple(row[key].shape)
        part = flat[start : start + count]
        fetched[id(row), key] = part.reshape(shape) if shape else float(part[0])
        start += count
    return [{key: fetched.get((id(row), key), value) for key, value in row.items()} for row in rows]
