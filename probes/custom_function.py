"""Functions with a hand-written backward pass, whose second derivative may be missing without a word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

__all__ = ["custom_functions", "graph_nodes"]


def graph_nodes(ends: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the graph behind some tensors, each once."""
    seen: set[Any] = set()
    todo: list[Any] = [end.grad_fn for end in ends]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [before for before, _ in node.next_functions]


def custom_functions(end: Tensor) -> list[str]:
    """The names of the `torch.autograd.Function` subclasses in the graph behind a tensor.

    Autograd differentiates what their backward passes compute. One that reads a number from the forward pass, or that
    is marked as differentiable once, has no derivative there: torch tells where the incoming slope has one, and
    otherwise takes it for zero.
    """
    found = {type(node).__name__.removesuffix("Backward") for node in graph_nodes([end]) if _is_custom(node)}
    return sorted(found)


def _is_custom(node: Any) -> bool:
    return isinstance(node, BackwardCFunction)
