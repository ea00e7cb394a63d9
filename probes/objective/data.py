"""Fixed batches over which a loss is averaged, weighted by their counts, with a hash."""

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
    """Fixed batches with the number of terms that each averages over."""

    batches: tuple[Any, ...]
    counts: tuple[float, ...]
    count: Callable[[Any], float] | None = None  # returns the terms of a batch; None for the length of its first tensor

    @property
    def samples(self) -> int:
        """Number of terms in all batches together."""
        return round(math.fsum(self.counts))

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each batch in the mean; they sum to 1."""
        total = math.fsum(self.counts)
        return tuple(count / total for count in self.counts)

    @property
    def devices(self) -> set[torch.device]:
        """Devices of the tensors in the batches."""
        return {leaf.device for batch in self.batches for _, leaf in _leaves(batch) if isinstance(leaf, Tensor)}

    @property
    def shapes(self) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]:
        """Path and shape of each tensor of each batch."""
        return tuple(
            tuple((path, tuple(leaf.shape)) for path, leaf in _leaves(batch) if isinstance(leaf, Tensor | np.ndarray))
            for batch in self.batches
        )

    def split(self, parts: int, *, seed: int) -> tuple[FixedData, ...]:
        """Split the samples at random into disjoint parts of nearly equal size.

        A sample is one index along the first axis of every tensor that has the length of the first tensor of its
        batch; everything else in a batch goes to all parts. A part has the same batches, with its samples only.

        Args:
            parts: Number of parts, at least 2.
            seed: Seed of the shuffle.

        Returns:
            The parts.

        Raises:
            ProbeError: there are fewer samples than parts, or a batch has no tensor with a length.
        """
        lengths = [_length(batch) for batch in self.batches]
        if not 2 <= parts <= sum(lengths):
            raise ProbeError(
                f"the number of parts must be at least 2 and at most that of samples, {sum(lengths)}, got {parts}"
            )
        order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(seed))
        owner = torch.empty_like(order)
        owner[order] = torch.arange(len(order)) % parts
        owners = torch.split(owner, lengths)
        return tuple(self._part([(own == part).nonzero()[:, 0] for own in owners]) for part in range(parts))

    def _part(self, indices: list[Tensor]) -> FixedData:
        """Return the samples at these indices of each batch."""
        triples = zip(self.batches, indices, map(_length, self.batches), strict=True)
        cut = [
            _mapped(batch, partial(_select, indices=own, length=length)) for batch, own, length in triples if len(own)
        ]
        # a batch may have ignored terms only
        counting = [batch for batch in cut if self.count is None or self.count(batch)]
        return fixed_data(counting or cut, self.count)

    def cast(self, dtype: torch.dtype) -> FixedData:
        """Return the data with floating tensors in another dtype."""
        return replace(self, batches=tuple(_mapped(batch, partial(cast, dtype=dtype)) for batch in self.batches))

    @cached_property
    def hash(self) -> str:
        """SHA-256 over path, dtype, shape and bytes of everything in the batches, in hexadecimal."""
        digest = hashlib.sha256()
        for index, batch in enumerate(self.batches):
            for path, leaf in _leaves(batch, str(index)):
                _feed(digest, path, leaf)
        return digest.hexdigest()


def fixed_data(batches: Iterable[Any], count: Callable[[Any], float] | None = None) -> FixedData:
    """Read batches once and count the terms of each.

    Args:
        batches: Any iterable; tensors are kept by reference.
        count: Returns the terms of a batch (tokens, say). Default: the length of its first tensor.

    Returns:
        The data.

    Raises:
        ProbeError: there is no batch, `batches` is not iterable, or a count is missing, no number, not positive or not
            finite.
    """
    if not isinstance(batches, Iterable):
        raise ProbeError(f"batches must be iterable, got {type(batches).__name__}: pass a list or a loader")
    kept = tuple(batches)
    if not kept:
        raise ProbeError(
            "batches must have at least 1 batch, got 0: an exhausted iterator, perhaps; pass a list or a new loader"
        )
    counts = tuple(_number((count or _length)(batch), index) for index, batch in enumerate(kept))
    for index, terms in enumerate(counts):
        if not (math.isfinite(terms) and terms > 0):
            raise ProbeError(
                f"the terms of a batch must be finite and positive, got {terms:g} for batch {index}: drop the batch"
            )
    return FixedData(kept, counts, count)


def _number(terms: Any, index: int) -> float:
    """Convert the return value of `count` to a number."""
    try:
        return float(terms)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbeError(f"count must return the number of terms, got {terms!r} for batch {index}") from error


def _length(batch: Any) -> int:
    """Return the length of the first tensor in the batch."""
    for _, leaf in _leaves(batch):
        if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim:
            return len(leaf)
    raise ProbeError(f"a batch ({type(batch).__name__}) has no tensor with a length: pass count=lambda batch: ...")


def _leaves(batch: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested mappings, tuples and lists with its path."""
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _leaves(value, f"{path}.{key}")
    elif isinstance(batch, tuple | list):
        for index, value in enumerate(batch):
            yield from _leaves(value, f"{path}.{index}")
    else:
        yield path, batch


def _mapped(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to each leaf of a batch, keeping its structure."""
    if isinstance(batch, Mapping):
        values = {key: _mapped(value, function) for key, value in batch.items()}
        return values if type(batch) is dict else type(batch)(values)  # type: ignore[call-arg]
    if isinstance(batch, tuple | list):
        items = [_mapped(value, function) for value in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return function(batch)


def _select(leaf: Any, indices: Tensor, length: int) -> Any:
    """Select samples of a leaf; return all of it if it has another length."""
    if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim and len(leaf) == length:
        return leaf[indices.to(leaf.device)] if isinstance(leaf, Tensor) else leaf[indices.numpy()]
    return leaf


def _feed(digest: Any, path: str, leaf: Any) -> None:
    """Add one leaf to the digest."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    if isinstance(leaf, Tensor):
        digest.update(f"{path}|{leaf.dtype}|{tuple(leaf.shape)}|".encode())
        digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(f"{path}|{type(leaf).__name__}|{leaf!r}|".encode())
