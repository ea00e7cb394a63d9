"""A way to take products, and what it makes of one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lossscope.probes.objective.autograd_guards import graph_nodes
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective

__all__ = ["BatchProduct", "Method", "held_bytes"]


@dataclass(frozen=True)
class BatchProduct:
    """Products with the curvature of one batch's mean loss, at the parameters of the moment it was made."""

    multiply: Callable[[Tensor, bool], Tensor]  # rows (k, n) and whether it is used again -> fresh rows (k, n)
    ends: Sequence[Tensor] = ()  # where the graph ends that it holds
    own: Sequence[Tensor] = ()  # tensors in the graph that it does not hold for itself: the leaf
    bytes: int | None = None  # what it holds, where no graph tells


@dataclass(frozen=True)
class Method:
    """A way to take products, and what is known of it beforehand."""

    name: str
    prepare: Callable[[Objective, BatchEvaluation], BatchProduct]
    widths: tuple[int, ...] = (1,)  # block widths to try, in this order; the last is taken where nothing is measured
    is_gradient: bool = False  # whether preparing it costs one gradient and little else
    check: Callable[[Objective], None] | None = None  # raises where it is wrong without a word
    unit: Callable[[Objective, BatchEvaluation], float] | None = (
        None  # measures its relative error; None where exact up to rounding
    )
    first_seconds: float = 0.0  # what its first use in a process may cost on top, for what torch then loads
    node_seconds: float = 0.0  # what preparing it may cost for each node of the plain method's graph


def held_bytes(made: BatchProduct) -> int:
    """The memory that a product of one batch holds: every storage saved in its graph once.

    Args:
        made: The product.

    Returns:
        Bytes.
    """
    if made.bytes is not None:
        return made.bytes
    held: dict[int, int] = {}
    for node in graph_nodes(made.ends):
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    for tensor in made.own:
        held.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(held.values())


_SAVED: dict[type, tuple[str, ...]] = {}  # the attributes of each type of node that hold what it has saved


def _saved(node: Any) -> list[Tensor]:
    """The tensors that a node of a graph has saved."""
    kind = type(node)
    if kind not in _SAVED:
        _SAVED[kind] = tuple(n for n in dir(kind) if n.startswith("_saved_") or n == "saved_tensors")
    found: list[Tensor] = []
    for name in _SAVED[kind]:
        value = getattr(node, name)
        found += [t for t in (value if isinstance(value, tuple | list) else [value]) if isinstance(t, Tensor)]
    return found
