"""Functions whose second derivative may be missing or wrong without a word: a hand-written backward pass, mostly."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lossscope.probes.errors import ProbeError

__all__ = ["custom_functions", "graph_nodes", "no_reentrant_checkpoint"]


@contextmanager
def no_reentrant_checkpoint() -> Iterator[None]:
    """A context that refuses `torch.utils.checkpoint.checkpoint(..., use_reentrant=True)`.

    Such a checkpoint raises under `torch.autograd.grad`. Where its inputs require no gradient it has no derivative
    by the parameters within, and torch only warns.

    Yields:
        Nothing.

    Raises:
        ProbeError: there was one.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="None of the inputs have requires_grad=True")
            yield
    except (RuntimeError, UserWarning) as error:
        if "use_reentrant" in str(error) or "None of the inputs have requires_grad" in str(error):
            raise ProbeError(
                "the model goes through checkpoint(..., use_reentrant=True), which has no derivative here: pass "
                "use_reentrant=False"
            ) from error
        raise


# by the names of their nodes; torch._weight_norm behind both of torch's weight norms is one (by 44 % in torch 2.13)
_WRONG_IN_TORCH: Final = ("WeightNormInterfaceBackward0",)


def graph_nodes(ends: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the graph behind some tensors, each once.

    Args:
        ends: Tensors; one without a graph has no nodes.

    Yields:
        The nodes, those near the ends first.
    """
    seen: set[Any] = set()
    todo: list[Any] = [end.grad_fn for end in ends]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [before for before, _ in node.next_functions]


def custom_functions(end: Tensor) -> list[str]:
    """The functions in the graph behind a tensor whose second derivative has to be checked.

    These are the subclasses of `torch.autograd.Function`, as autograd differentiates what their backward passes
    compute: one that reads a number from the forward pass, or that is marked as differentiable once, has no derivative
    there; torch tells where the incoming slope has one, and otherwise takes it for zero. And they are the functions of
    torch itself whose derivative of the derivative is known to be wrong.

    Args:
        end: Where the graph ends, the loss.

    Returns:
        Their names, each once, in alphabetical order; empty where the graph has none.
    """
    names = {type(node).__name__ for node in graph_nodes([end]) if _is_custom(node)}
    return sorted(name.removesuffix("0").removesuffix("Backward") for name in names)


def _is_custom(node: Any) -> bool:
    return isinstance(node, BackwardCFunction) or type(node).__name__ in _WRONG_IN_TORCH
