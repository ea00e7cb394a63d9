"""Rows of tables whose numbers may still be on the device, and how all of them leave it with one wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Row", "to_host"]

Row = dict[str, Any]


def to_host(rows: Sequence[Row]) -> list[Row]:
    """The rows with plain floats and arrays in place of tensors, fetched from the device in one go."""
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
