"""Losses that lossscope makes from a model and data on disk, for `measure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lossscope.landscape.errors import ConfigError
from lossscope.probes.objective.objective import Objective

__all__ = ["ReadyLoss", "evenly", "require_counts"]

T = TypeVar("T")


@dataclass(frozen=True)
class ReadyLoss:
    """A loss with where it comes from, for the provenance of a run."""

    objective: Objective
    place: str
    details: Mapping[str, Any]


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Return at most so many of the items, spread evenly from the first on."""
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def require_counts(**counts: int) -> None:
    """Refuse numbers below 1.

    Raises:
        ConfigError: One is below 1.
    """
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"--{name} must be at least 1, got {count}")
