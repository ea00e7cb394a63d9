"""A method of taking matrix-vector products, and the product it prepares for one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossscope.probes.objective.autograd_guards import graph_nodes
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective

__all__ = ["BatchProduct", "MeasuredError", "Method", "graph_bytes", "stacked"]


@dataclass(frozen=True)
class BatchProduct:
    """Products with the curvature of one batch's mean loss, at the parameters for which it was prepared."""

    multiply: Callable[[Tensor, bool], Tensor]  # rows (k, n), whether it is used again -> new rows (k, n)
    ends: Sequence[Tensor] = ()  # outputs of the graph it keeps alive
    own: Sequence[Tensor] = ()  # tensors of the graph that exist anyway and are not counted: the leaf
    bytes: int | None = None  # memory it keeps, where the graph does not show it


@dataclass(frozen=True)
class MeasuredError:
    """Error of the products of a method, measured along a random direction."""

    unit: float  # relative to the length of the product
    rounding: float  # part of it that products by `Method.compared` do not show, for a unit vector, absolute


@dataclass(frozen=True)
class Method:
    """A method of taking products, with its properties."""

    name: str
    prepare: Callable[[Objective, BatchEvaluation], BatchProduct]
    width: int = 1  # columns multiplied at a time
    is_gradient: bool = False  # True if `prepare` costs one gradient and little else
    check: Callable[[Objective], None] | None = None  # raises if its products are silently wrong
    unit: Callable[[Objective, BatchEvaluation], MeasuredError] | None = None  # its error; None if exact to rounding
    compared: Method | None = None  # takes products with which these are compared, to measure their error
    share: float = 1.0  # the error, as a share of the distance of the two
    fallback: bool = False  # True if it may replace the default method where that one raises


def stacked(rows: Iterable[Tensor]) -> Tensor:
    """Return rows `(n,)` as a matrix `(k, n)`; a single one is not copied.

    Args:
        rows: The rows, at least one.
    """
    found = list(rows)
    return found[0][None] if len(found) == 1 else torch.stack(found)


def graph_bytes(product: BatchProduct) -> int:
    """Return the memory that the product of one batch keeps alive: each storage saved in its graph counts once.

    Args:
        product: The product.

    Returns:
        The number of bytes.
    """
    if product.bytes is not None:
        return product.bytes
    storages: dict[int, int] = {}
    for node in graph_nodes(product.ends):
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    for tensor in product.own:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


_SAVED: dict[type, tuple[str, ...]] = {}  # node type -> names of the attributes with its saved tensors


def _saved(node: Any) -> list[Tensor]:
    """Return the tensors that a graph node has saved."""
    kind = type(node)
    if kind not in _SAVED:
        _SAVED[kind] = tuple(n for n in dir(kind) if n.startswith("_saved_") or n == "saved_tensors")
    found: list[Tensor] = []
    for name in _SAVED[kind]:
        value = getattr(node, name)
        found += [t for t in (value if isinstance(value, tuple | list) else [value]) if isinstance(t, Tensor)]
    return found
