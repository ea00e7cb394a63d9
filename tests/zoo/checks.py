"""Comparison of a measured number with its true value, and what a probe must leave as it was."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.statistics.estimate import Estimate
from zoo.member import Parts

__all__ = ["ROUNDINGS", "Check", "changed", "exact", "interval", "kept", "small"]

ROUNDINGS = 30  # rounding units of a member by which an exact number may be off, relative to its scale
DOUBLE = 1e-10  # relative accuracy of the true values


@dataclass(frozen=True)
class Check:
    """One number with its interval and its true value."""

    name: str
    value: float
    low: float
    high: float
    truth: float
    sampled: bool = False

    @property
    def missed(self) -> bool:
        """True if the true value lies outside of the interval."""
        if math.isnan(self.truth):
            return not math.isnan(self.value)
        slack = DOUBLE * abs(self.truth)
        return not self.low - slack <= self.truth <= self.high + slack

    @property
    def far(self) -> bool:
        """True if the true value is more than three half-widths away from the value."""
        reach = self.high - self.value if self.truth > self.value else self.value - self.low
        return self.missed and not abs(self.truth - self.value) <= 3 * reach + DOUBLE * abs(self.truth)

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.9g} [{self.low:.9g}, {self.high:.9g}], right {self.truth:.9g}"


def exact(name: str, found: float | Estimate, truth: float, digits: float, scale: float | None = None) -> Check:
    """Compare an exact number: within its own interval, or within `ROUNDINGS` units of the scale if that is empty."""
    scale = abs(truth) if scale is None else abs(scale)
    low = high = value = found.value if isinstance(found, Estimate) else found
    if isinstance(found, Estimate) and found.high > found.low:
        low, high = found.low, found.high
    else:
        low, high = value - ROUNDINGS * digits * scale, value + ROUNDINGS * digits * scale
    return Check(name, value, low, high, truth)


def small(name: str, error: Tensor, digits: float, scale: float) -> Check:
    """Compare a vector with its true value, by the length of the difference."""
    length = float(error.norm())
    return Check(name, length, length - ROUNDINGS * digits * scale, length, 0.0)


def interval(name: str, found: Estimate, truth: float, digits: float, scale: float | None = None) -> Check:
    """Compare an estimate that says it is sampled or bounded; one that says it is exact as such."""
    if found.bound == "exact":
        return exact(name, found, truth, digits, scale)
    return Check(name, found.value, found.low, found.high, truth, sampled=True)


def kept(parts: Parts) -> dict[str, Any]:
    """Return all that a probe must leave: bytes and identities of what model and loss reach, and random states."""
    modules = [module for root in (parts.model, *parts.reaches) for module in root.modules()]
    tensors = [(i, name, t) for i, module in enumerate(modules) for name, t in _own(module)]
    return {
        "identities": [(i, name, id(t), id(None if t is None else t.grad)) for i, name, t in tensors],
        "bytes": [None if t is None else t.detach().clone() for _, _, t in tensors],
        "gradients": [None if t is None or t.grad is None else t.grad.clone() for _, _, t in tensors],
        "flags": [(t.requires_grad, t._version) for _, _, t in tensors if t is not None],
        "modes": [module.training for module in modules],
        "attributes": [{name: id(value) for name, value in vars(module).items()} for module in modules],
        "containers": [_contents(value) for module in modules for value in vars(module).values()],
        "generators": [
            value.get_state()
            for module in modules
            for value in vars(module).values()
            if isinstance(value, torch.Generator)
        ],
        "batches": [leaf.detach().clone() for leaf in _leaves(parts.batches)],
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # type: ignore[index, union-attr]
        "python": random.getstate(),
        "switches": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what differs."""
    return [name for name in before if not _equal(before[name], after[name])]


def _contents(value: Any) -> list[int]:
    """Return the identities of what a list, a set or a dictionary holds."""
    if isinstance(value, dict):
        return [*map(id, value), *map(id, value.values())]
    return [*map(id, value)] if isinstance(value, list | set) else []


def _own(module: torch.nn.Module) -> Iterable[tuple[str, Tensor | None]]:
    return [*module._parameters.items(), *module._buffers.items()]


def _leaves(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    items = batch.values() if isinstance(batch, dict) else batch
    return [leaf for item in items for leaf in _leaves(item)]


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right)
