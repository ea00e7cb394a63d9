"""The fixed batches that a loss is averaged over: held once, weighted by their counts, hashed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError

__all__ = ["FixedData", "fixed_data"]


@dataclass(frozen=True)
class FixedData:
    """Batches that do not change any more, and over how many terms each of them averages."""

    batches: tuple[Any, ...]
    counts: tuple[float, ...]

    @property
    def samples(self) -> int:
        """Terms in all batches together."""
        return round(math.fsum(self.counts))

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of each batch in the mean; they sum to one."""
        total = math.fsum(self.counts)
        return tuple(count / total for count in self.counts)

    @property
    def devices(self) -> set[torch.device]:
        """Where the tensors of the batches lie."""
        return {leaf.device for batch in self.batches for _, leaf in _leaves(batch) if isinstance(leaf, Tensor)}

    @cached_property
    def hash(self) -> str:
        """The sha256 over place, dtype, shape and bytes of everything in the batches, in hexadecimal."""
        digest = hashlib.sha256()
        for index, batch in enumerate(self.batches):
            for place, leaf in _leaves(batch, str(index)):
                _feed(digest, place, leaf)
        return digest.hexdigest()


def fixed_data(batches: Iterable[Any], count: Callable[[Any], float] | None = None) -> FixedData:
    """The batches, read once and kept, each with the number of terms its mean is taken over.

    Args:
        batches: Any iterable; tensors are kept by reference.
        count: Terms of a batch (tokens, say); by default the length of the first tensor found in it.

    Returns:
        The data.

    Raises:
        ProbeError: there is no batch, or a count is missing, not positive or not finite.
    """
    kept = tuple(batches)
    if not kept:
        raise ProbeError("got 0 batches, need at least 1: an exhausted iterator, perhaps; pass a list or a new loader")
    counts = tuple(float((count or _length)(batch)) for batch in kept)
    for index, terms in enumerate(counts):
        if not (math.isfinite(terms) and terms > 0):
            raise ProbeError(f"batch {index} counts {terms:g} terms, need a finite number above 0: drop the batch")
    return FixedData(kept, counts)


def _length(batch: Any) -> int:
    """The length of the first tensor in the batch."""
    for _, leaf in _leaves(batch):
        if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim:
            return len(leaf)
    raise ProbeError(f"a batch ({type(batch).__name__}) holds no tensor with a length: pass count=lambda batch: ...")


def _leaves(batch: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings, tuples and lists, with the place where it stands."""
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _leaves(value, f"{place}.{key}")
    elif isinstance(batch, tuple | list):
        for index, value in enumerate(batch):
            yield from _leaves(value, f"{place}.{index}")
    else:
        yield place, batch


def _feed(digest: Any, place: str, leaf: Any) -> None:
    """Add one leaf to the digest."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    if isinstance(leaf, Tensor):
        digest.update(f"{place}|{leaf.dtype}|{tuple(leaf.shape)}|".encode())
        digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(f"{place}|{type(leaf).__name__}|{leaf!r}|".encode())
