"""Fixed batches over which a loss is averaged, weighted by their counts, with a hash."""

from __future__ import annotations

import hashlib
import math
import pickle
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.batch_tree import leaves, length, mapped
from lossscope.probes.objective.parameters import cast

__all__ = ["FixedData", "copied", "fixed_data", "versions"]

_MOST_TERMS: Final = 1e100  # of a batch
_SAMPLED: Final = 1024  # entries of each tensor in the check for changed data


@dataclass(frozen=True)
class FixedData:
    """Fixed batches with the number of terms that each averages over."""

    batches: tuple[Any, ...]
    counts: tuple[float, ...]
    count: Callable[[Any], float] | None = None  # returns the terms of a batch; None for the length of its first tensor
    additive: bool = True  # False if the loss is a mean over batches: the plain one without a count
    marks: list[tuple[Any, ...]] = field(default_factory=list, compare=False)  # state of each leaf when it was read

    @property
    def samples(self) -> float:
        """Number of terms in all batches together, an `int` where it is whole."""
        total = math.fsum(self.counts)
        return int(total) if total == int(total) else total

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each batch in the mean; they sum to 1."""
        if not self.additive and self.count is None:
            return (1 / len(self.batches),) * len(self.batches)
        total = math.fsum(self.counts)
        return tuple(count / total for count in self.counts)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in the batches."""
        return [leaf for batch in self.batches for _, leaf in leaves(batch) if isinstance(leaf, Tensor)]

    @property
    def devices(self) -> set[torch.device]:
        """Devices of the tensors in the batches."""
        return {tensor.device for tensor in self.tensors}

    @property
    def shapes(self) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]:
        """Path and shape of each tensor of each batch."""
        return tuple(
            tuple((path, tuple(leaf.shape)) for path, leaf in leaves(batch) if isinstance(leaf, Tensor | np.ndarray))
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

    def batch(self, index: int) -> FixedData:
        """Return the data of one batch."""
        return replace(self, batches=(self.batches[index],), counts=(self.counts[index],), marks=[])

    def _part(self, indices: list[Tensor]) -> FixedData:
        """Return the samples at these indices of each batch."""
        triples = zip(self.batches, indices, map(_length, self.batches), strict=True)
        cut = [mapped(batch, partial(_select, indices=own, length=count)) for batch, own, count in triples if len(own)]
        # a batch may have ignored terms only
        counting = [batch for batch in cut if self.count is None or self.count(batch)]
        return fixed_data(counting or cut, self.count, additive=self.additive)

    def cast(self, dtype: torch.dtype) -> FixedData:
        """Return the data with floating tensors in another dtype."""
        batches = tuple(mapped(batch, partial(cast, dtype=dtype)) for batch in self.batches)
        return replace(self, batches=batches, marks=[])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over path, dtype, shape and bytes of everything in the batches, in hexadecimal."""
        digest = hashlib.sha256()
        for index, batch in enumerate(self.batches):
            for path, leaf in leaves(batch, str(index)):
                _feed(digest, path, leaf)
        return digest.hexdigest()

    @property
    def hashed(self) -> bool:
        """True once the hash was read."""
        return "hash" in vars(self)

    def mark(self, *, changed_only: bool = False) -> None:
        """Note the state of the data, which `require_unchanged` compares.

        Args:
            changed_only: Note only tensors that were written since: a loss may write into its batch.
        """
        found = [leaf for batch in self.batches for _, leaf in leaves(batch)]
        if not changed_only or len(self.marks) != len(found):
            self.marks[:] = [(_version(leaf), _sample(leaf)) for leaf in found]
            return
        for place, leaf in enumerate(found):
            if self.marks[place][0] != (version := _version(leaf)):
                self.marks[place] = (version, _sample(leaf))

    def require_unchanged(self, *, thorough: bool = False) -> None:
        """Raise if the data are not those that were noted last.

        Every write through torch counts a version of its tensor. Where one was counted, 1024 entries or more of the
        tensor, evenly spaced, are compared if it is on the CPU, or all data by their hash if that is known.

        Args:
            thorough: Compare such entries of all tensors: writes through numpy are not counted.

        Raises:
            ProbeError: they changed.
        """
        if not self.marks:
            self.mark()
        places = [(index, leaf) for index, batch in enumerate(self.batches) for _, leaf in leaves(batch)]
        written = False
        for (index, leaf), (version, sampled) in zip(places, self.marks, strict=True):
            counted = version != _version(leaf)
            written |= counted
            if (counted or thorough) and sampled != _sample(leaf):
                raise _changed(index)
        if written:
            if self.hashed and replace(self).hash != self.hash:
                raise _changed(None)
            self.mark(changed_only=True)


def _changed(index: int | None) -> ProbeError:
    what = "the data" if index is None else f"batch {index} of the data"
    return ProbeError(
        f"{what} changed since the objective was made: give the objective a copy of the data, or make a new Objective"
    )


def fixed_data(
    batches: Iterable[Any], count: Callable[[Any], float] | None = None, *, additive: bool = True
) -> FixedData:
    """Read batches once and count the terms of each.

    Random generators (torch's, numpy's, Python's, and the loader's own) are left as they were: a shuffled loader gives
    one order, and the next training epoch is unchanged.

    Args:
        batches: Any iterable. The tensors of a list or a tuple are kept by reference; those of a loader or another
            iterator are copied, as it may fill the same tensors again.
        count: Returns the terms of a batch (tokens, say). Default: the length of its first tensor.
        additive: False for a mean over batches, the plain one without `count`; a batch without a tensor then counts 1.

    Returns:
        The data.

    Raises:
        ProbeError: there is no batch, `batches` is not iterable, or a count is missing, no number, not positive or not
            finite.
    """
    if not isinstance(batches, Iterable):
        raise ProbeError(f"batches must be iterable, got {type(batches).__name__}: pass a list or a loader")
    with _random_numbers_kept(batches):
        kept = tuple(batches) if isinstance(batches, tuple | list) else tuple(copied(batch) for batch in batches)
    if not kept:
        raise ProbeError(
            "batches must have at least 1 batch, got 0: an exhausted iterator, perhaps; pass a list or a new loader"
        )
    if count is None and not additive:
        counts = tuple(float(length(batch) or 1) for batch in kept)
    else:
        counts = tuple(_counted(count or _length, batch, index) for index, batch in enumerate(kept))
    found = FixedData(kept, counts, count, additive)
    found.mark()
    return found


def _counted(count: Callable[[Any], float], batch: Any, index: int) -> float:
    """Return the number of terms of a batch after checking it."""
    try:
        terms = count(batch)
    except ProbeError:
        raise
    except Exception as error:  # the user's own function
        line = next(iter(str(error).splitlines()), "")
        raise ProbeError(
            f"count(batch) raised {type(error).__name__}: {line} for batch {index}: it must return the number of terms"
        ) from error
    try:
        number = float(terms)
    except OverflowError:  # of an integer of hundreds of digits
        number = math.inf
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(terms).__name__} of shape {tuple(terms.shape)}" if hasattr(terms, "shape") else repr(terms)[:60]
        raise ProbeError(f"count must return the number of terms, got {got} for batch {index}") from error
    if not (math.isfinite(number) and number > 0):
        raise ProbeError(
            f"the terms of a batch must be finite and positive, got {number:g} for batch {index}: drop the batch"
        )
    if not 1 / _MOST_TERMS <= number <= _MOST_TERMS:  # sums and shares of such numbers are not exact
        raise ProbeError(
            f"the terms of a batch must be from {1 / _MOST_TERMS:g} to {_MOST_TERMS:g}, got {number:g} for batch "
            f"{index}: divide all counts by one number"
        )
    return number


def _length(batch: Any) -> int:
    """Return the length of the first tensor in the batch."""
    found = length(batch)
    if found is None:
        raise ProbeError(f"a batch ({type(batch).__name__}) has no tensor with a length: pass count=lambda batch: ...")
    return found


@contextmanager
def _random_numbers_kept(batches: Any) -> Iterator[None]:
    """Restore the states of the global generators and of those of a loader."""
    owners = [batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)]
    owners.append(getattr(owners[-1], "sampler", None))
    mine = {id(own): own for one in owners if isinstance(own := getattr(one, "generator", None), torch.Generator)}
    before = [(own, own.get_state()) for own in mine.values()]
    drawn, of_python = np.random.get_state(legacy=False), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(drawn)
        random.setstate(of_python)
        for own, state in before:
            own.set_state(state)


def copied(batch: Any) -> Any:
    """Return a copy of a batch with containers, tensors and arrays of its own."""
    return mapped(batch, _own)


def versions(batch: Any) -> list[tuple[str, int | None]]:
    """Return the path of each leaf of a batch and the number of writes that torch has counted for it."""
    return [(path, _version(leaf)) for path, leaf in leaves(batch)]


def _own(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone().requires_grad_() if leaf.requires_grad else leaf.clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _select(leaf: Any, indices: Tensor, length: int) -> Any:
    """Select samples of a leaf; return all of it if it has another length."""
    if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim and len(leaf) == length:
        return leaf[indices.to(leaf.device)] if isinstance(leaf, Tensor) else leaf[indices.numpy()]
    return leaf


def _feed(digest: Any, path: str, leaf: Any) -> None:
    """Add one leaf to the digest."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        leaf = torch.from_numpy(np.array(np.ascontiguousarray(leaf)))  # a copy: it may be read-only
    if isinstance(leaf, Tensor):
        digest.update(f"{path}|{leaf.dtype}|{tuple(leaf.shape)}|".encode())
        for part in _strided(leaf.detach()):
            digest.update(part.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    else:
        digest.update(f"{path}|{type(leaf).__name__}|".encode() + _written(leaf) + b"|")


def _strided(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the plain tensors that hold the entries of a tensor of any layout."""
    if tensor.is_nested:
        return tuple(part for one in tensor.unbind() for part in _strided(one))
    if tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        return whole.indices(), whole.values()
    return (tensor,) if tensor.layout == torch.strided else (tensor.to_dense(),)


def _written(leaf: Any) -> bytes:
    """Return bytes that hold the value of a leaf without tensors, and no address."""
    if isinstance(leaf, set | frozenset):
        return repr(sorted(map(repr, leaf))).encode()
    if " at 0x" in repr(leaf):
        try:
            return pickle.dumps(leaf, protocol=4)
        except Exception:  # a function, a handle: its name must do
            return str(getattr(leaf, "__qualname__", type(leaf).__qualname__)).encode()
    return repr(leaf).encode()


def _version(leaf: Any) -> int | None:
    """Return the number of writes that torch has counted for a tensor; None if none are counted."""
    return None if not isinstance(leaf, Tensor) or leaf.is_inference() else leaf._version


def _sample(leaf: Any) -> int | None:
    """Return a checksum of evenly spaced entries of a tensor on the CPU; None for anything else."""
    if isinstance(leaf, Tensor) and leaf.device.type == "cpu" and leaf.layout == torch.strided and not leaf.is_nested:
        if leaf.ndim and not leaf.is_contiguous():  # whose flat view would be a copy of all of it
            leaf = leaf[:: max(1, len(leaf) // 64)]
        flat = leaf.detach().resolve_conj().resolve_neg().reshape(-1)
        return zlib.crc32(flat[:: max(1, len(flat) // _SAMPLED)].contiguous().view(torch.uint8).numpy().tobytes())
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        entries = leaf.reshape(-1)
        return zlib.crc32(entries[:: max(1, len(entries) // _SAMPLED)].tobytes())
    return None
