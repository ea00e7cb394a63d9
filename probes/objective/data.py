"""The fixed batches that a loss is averaged over: held once, weighted by their counts, hashed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.parameters import cast

__all__ = ["FixedData", "fixed_data"]


@dataclass(frozen=True)
class FixedData:
    """Batches that do not change any more, and over how many terms each of them averages."""

    batches: tuple[Any, ...]
    counts: tuple[float, ...]
    count: Callable[[Any], float] | None = None  # terms of a batch; None for the length of its first tensor

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

    @property
    def shapes(self) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]:
        """The place and the shape of each tensor of each batch."""
        return tuple(
            tuple((place, tuple(leaf.shape)) for place, leaf in _leaves(batch) if isinstance(leaf, Tensor | np.ndarray))
            for batch in self.batches
        )

    def split(self, parts: int, *, seed: int) -> tuple[FixedData, ...]:
        """Disjoint parts of nearly equal numbers of samples, which are shuffled before they are dealt out.

        A sample is one place along the first axis of every tensor that is as long there as the first tensor of its
        batch; everything else in a batch goes to all parts. A part keeps the batches, each with its own samples.

        Args:
            parts: How many, at least 2.
            seed: Of the shuffle.

        Returns:
            The parts.

        Raises:
            ProbeError: there are fewer samples than parts, or a batch has no tensor with a length.
        """
        lengths = [_length(batch) for batch in self.batches]
        if not 2 <= parts <= sum(lengths):
            raise ProbeError(
                f"{sum(lengths)} samples cannot be dealt into {parts} parts, need 2 to {sum(lengths)} parts"
            )
        order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(seed))
        owner = torch.empty_like(order)
        owner[order] = torch.arange(len(order)) % parts
        owners = torch.split(owner, lengths)
        return tuple(self._part([(own == part).nonzero()[:, 0] for own in owners]) for part in range(parts))

    def _part(self, places: list[Tensor]) -> FixedData:
        """The samples at these places of each batch."""
        triples = zip(self.batches, places, map(_length, self.batches), strict=True)
        cut = [
            _mapped(batch, partial(_taken, places=place, length=length))
            for batch, place, length in triples
            if len(place)
        ]
        counting = [batch for batch in cut if self.count is None or self.count(batch)]  # some may leave all terms out
        return fixed_data(counting or cut, self.count)

    def cast(self, dtype: torch.dtype) -> FixedData:
        """The same data with floating tensors in another dtype."""
        return replace(self, batches=tuple(_mapped(batch, partial(cast, dtype=dtype)) for batch in self.batches))

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
        ProbeError: there is no batch or nothing to take one from, or a count is missing, no number, not positive or not
            finite.
    """
    if not isinstance(batches, Iterable):
        raise ProbeError(f"batches is a {type(batches).__name__}, need an iterable of batches: pass a list or a loader")
    kept = tuple(batches)
    if not kept:
        raise ProbeError("got 0 batches, need at least 1: an exhausted iterator, perhaps; pass a list or a new loader")
    counts = tuple(_number((count or _length)(batch), index) for index, batch in enumerate(kept))
    for index, terms in enumerate(counts):
        if not (math.isfinite(terms) and terms > 0):
            raise ProbeError(f"batch {index} counts {terms:g} terms, need a finite number above 0: drop the batch")
    return FixedData(kept, counts, count)


def _number(terms: Any, index: int) -> float:
    """What `count` returned, as a number."""
    try:
        return float(terms)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbeError(f"count returned {terms!r} for batch {index}, need a number: its terms") from error


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


def _mapped(batch: Any, function: Callable[[Any], Any]) -> Any:
    """A batch of the same make with a function of each leaf."""
    if isinstance(batch, Mapping):
        values = {key: _mapped(value, function) for key, value in batch.items()}
        return values if type(batch) is dict else type(batch)(values)  # type: ignore[call-arg]
    if isinstance(batch, tuple | list):
        items = [_mapped(value, function) for value in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return function(batch)


def _taken(leaf: Any, places: Tensor, length: int) -> Any:
    """These samples of a leaf; all of it where it has another length."""
    if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim and len(leaf) == length:
        return leaf[places.to(leaf.device)] if isinstance(leaf, Tensor) else leaf[places.numpy()]
    return leaf


def _feed(digest: Any, place: str, leaf: Any) -> None:
    """Add one leaf to the digest."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    if isinstance(leaf, Tensor):
        digest.update(f"{place}|{leaf.dtype}|{tuple(leaf.shape)}|".encode())
        digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(f"{place}|{type(leaf).__name__}|{leaf!r}|".encode())
