"""Detection of functions whose second derivative is missing or silently wrong, mostly custom backward passes."""

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
    """Raise inside this context on `torch.utils.checkpoint.checkpoint(..., use_reentrant=True)`.

    Such a checkpoint raises under `torch.autograd.grad`. If its inputs require no gradient, it has no derivative with
    respect to the parameters inside, and torch only warns.

    Yields:
        Nothing.

    Raises:
        ProbeError: there is such a checkpoint.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="None of the inputs have requires_grad=True")
            yield
    except (RuntimeError, UserWarning) as error:
        if "use_reentrant" in str(error) or "None of the inputs have requires_grad" in str(error):
            raise ProbeError(
                "the model uses checkpoint(..., use_reentrant=True), which has no derivative under "
                "torch.autograd.grad: pass use_reentrant=False"
            ) from error
        raise


# node names; torch._weight_norm, behind both weight norms of torch, is 44 % off in torch 2.13
_WRONG_IN_TORCH: Final = ("WeightNormInterfaceBackward0",)


def graph_nodes(ends: Iterable[Tensor]) -> Iterator[Any]:
    """Yield the nodes of the autograd graph behind some tensors, each once.

    Args:
        ends: Outputs of the graph; a tensor without a graph has no nodes.

    Yields:
        The nodes, those near the given tensors first.
    """
    seen: set[Any] = set()
    pending: list[Any] = [end.grad_fn for end in ends]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending += [before for before, _ in node.next_functions]


def custom_functions(end: Tensor) -> list[str]:
    """Return the functions in the graph of a tensor whose second derivative must be checked.

    These are the subclasses of `torch.autograd.Function`, because autograd differentiates their backward passes: one
    that reads a precomputed number from the forward pass, or that is marked `once_differentiable`, has no derivative;
    torch raises only where the incoming gradient has one, and treats it as zero otherwise. Functions of torch itself
    whose second derivative is known to be wrong are included.

    Args:
        end: Output of the graph, the loss.

    Returns:
        Their names, each once, in alphabetical order; empty if there are none.
    """
    names = {type(node).__name__ for node in graph_nodes([end]) if _is_custom(node)}
    return sorted(name.removesuffix("0").removesuffix("Backward") for name in names)


def _is_custom(node: Any) -> bool:
    return isinstance(node, BackwardCFunction) or type(node).__name__ in _WRONG_IN_TORCH
