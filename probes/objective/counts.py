"""Counts of the terms of a batch that its loss may average over, to suggest one that fits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from lossscope.probes.objective.batch_tree import array_places

__all__ = ["SuggestedCount", "suggested_counts"]

_IGNORED: Final = (-100, 255, -1, 0)  # class indices that are commonly left out, and the index of padding


@dataclass(frozen=True)
class SuggestedCount:
    """A count of terms, as Python code and as its values for some batches."""

    source: str  # a lambda
    values: tuple[float, ...]  # one for each batch


def suggested_counts(batches: Sequence[Any], loss_fn: Any) -> list[SuggestedCount]:
    """Return counts of the terms of batches, the most likely first.

    They are the lengths and sizes of the tensors, the labels that are not ignored (also shifted by one, as causal
    language models do), the sums of masks and weights, and the sums of the weights of the labels' classes where a
    function refers to such weights by a name.

    Args:
        batches: Batches of one structure.
        loss_fn: The loss.

    Returns:
        The counts, all positive. Which one fits is for the caller to find.
    """
    places = [{_shortest(batch, place, x): x for place, x in array_places(batch)} for batch in batches]
    names = [name for name in places[0] if all(name in place for place in places)]
    found = []
    for source, count in (one for name in reversed(names) for one in _of_tensor(name, loss_fn)):
        try:
            values = tuple(float(count(place[source.name])) for place in places)
        except (RuntimeError, IndexError, ValueError):
            continue
        if all(math.isfinite(value) and value > 0 for value in values):
            found.append(SuggestedCount(f"lambda batch: {source.code}", values))
    return found


@dataclass(frozen=True)
class _Source:
    """A count of one tensor."""

    name: str  # expression of the tensor
    code: str  # expression of the count


def _of_tensor(name: str, loss_fn: Any) -> Iterator[tuple[_Source, Callable[[Tensor], Any]]]:
    """Yield counts of one tensor of a batch, by their code."""
    yield _Source(name, f"len({name})"), len
    yield _Source(name, f"{name}.shape[1]"), lambda x: x.shape[1]
    for ignored in _IGNORED:
        yield _Source(name, f"int(({name} != {ignored}).sum())"), partial(_other_than, ignored)
    yield _Source(name, f"int(({name}[:, 1:] != -100).sum())"), lambda x: _other_than(-100, x[:, 1:])
    yield _Source(name, f"float({name}.sum())"), _weights_sum
    yield _Source(name, f"{name}.numel()"), lambda x: x.numel()
    yield _Source(name, f"{name}[:, 1:].numel()"), lambda x: x[:, 1:].numel()
    for label, weight in _class_weights(loss_fn):
        yield _Source(name, f"float({label}[{name}].sum())"), partial(_weight_sum, weight)


def _other_than(ignored: int, x: Tensor) -> Tensor:
    """Return the number of entries that are not a certain class index."""
    return _labels(x).ne(ignored).sum()


def _weight_sum(weight: Tensor, x: Tensor) -> Tensor:
    """Return the sum of the weights of class indices."""
    return weight.to(x.device)[_labels(x)].sum()


def _shortest(batch: Any, place: str, x: Tensor) -> str:
    """Return the expression of a tensor as an attribute of the batch, if it is one: graphs keep theirs in a store."""
    name = place.replace("'", ".").replace("]", "").split(".")[-2 if place.endswith("']") else -1]
    same = name.isidentifier() and not isinstance(batch, dict | tuple | list) and getattr(batch, name, None) is x
    return f"batch.{name}" if same else place


def _labels(x: Tensor) -> Tensor:
    """Return a tensor of whole numbers."""
    if x.is_floating_point() or x.is_complex():
        raise ValueError
    return x.long()


def _weights_sum(x: Tensor) -> Tensor:
    """Return the sum of a mask, or of weights."""
    if x.is_complex() or bool((x < 0).any()):
        raise ValueError
    return x.double().sum()


def _class_weights(loss_fn: Any) -> list[tuple[str, Tensor]]:
    """Return the vectors of numbers that a function refers to, by the name under which it does."""
    function = getattr(loss_fn, "func", loss_fn)
    names: dict[str, Any] = {}
    try:
        closed = inspect.getclosurevars(function)
        names = {**closed.globals, **closed.nonlocals}
    except (TypeError, ValueError):  # an object with __call__
        names = {f"loss_fn.{name}": value for name, value in getattr(function, "__dict__", {}).items()}
    names |= {f"{name}.weight": getattr(value, "weight", None) for name, value in names.items()}
    names |= getattr(loss_fn, "keywords", None) or {}
    vectors = [(name, value) for name, value in names.items() if isinstance(value, Tensor)]
    return [(name, value.detach()) for name, value in vectors if value.ndim == 1 and torch.is_floating_point(value)]
