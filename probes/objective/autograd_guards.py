"""Detection of functions whose second derivative is missing or silently wrong, mostly custom backward passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import CheckpointFunction

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.verified_functions import STRAIGHT_THROUGH, VERIFIED

__all__ = [
    "GraphFacts",
    "graph_facts",
    "graph_nodes",
    "held_parameters",
    "no_reentrant_checkpoint",
    "parameters_by_name",
    "refuse_backward",
    "refuse_held",
]


@contextmanager
def no_reentrant_checkpoint() -> Iterator[None]:
    """Raise inside this context on `torch.utils.checkpoint.checkpoint(..., use_reentrant=True)`.

    Such a checkpoint raises under `torch.autograd.grad`, or has no derivative with respect to the parameters inside:
    silently in forward mode, and where its inputs require no gradient.

    Yields:
        Nothing.
    """
    inherited = "apply" not in vars(CheckpointFunction)
    before = CheckpointFunction.apply
    CheckpointFunction.apply = staticmethod(_refuse_checkpoint)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if inherited:
            del CheckpointFunction.apply
        else:
            CheckpointFunction.apply = staticmethod(before)  # type: ignore[method-assign]


def _refuse_checkpoint(*_: Any) -> Any:
    """Raise the error that names a reentrant checkpoint."""
    raise ProbeError(
        "the model uses checkpoint(..., use_reentrant=True), which has no derivative under "
        "torch.autograd.grad: pass use_reentrant=False"
    )


@contextmanager
def parameters_by_name() -> Iterator[None]:
    """Let `get_parameter` return what stands for a parameter in a module inside this context.

    Torch raises for tensors that are no `nn.Parameter`, which substitutes are not. The method is replaced in the class
    `nn.Module`, as one bound to a module would follow its shallow copies; for modules with parameters of their own it
    returns what it always did.

    Yields:
        Nothing.
    """
    before = nn.Module.get_parameter

    def get_parameter(module: nn.Module, target: str) -> Any:
        path, _, name = target.rpartition(".")
        found = module.get_submodule(path)._parameters.get(name)
        return before(module, target) if found is None else found

    nn.Module.get_parameter = get_parameter  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.get_parameter = before  # type: ignore[method-assign]


def refuse_backward(where: str) -> NoReturn:
    """Raise the error that a backward pass inside the loss has written `.grad`.

    Args:
        where: The parameter.

    Raises:
        ProbeError: always.
    """
    raise ProbeError(
        f"a backward pass inside the loss has written .grad of a parameter ({where}), past torch.autograd.grad, so "
        "that derivatives are missing: take .backward() out of the loss, and out of functions with their own backward "
        "pass, such as a reentrant checkpoint"
    )


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


def held_parameters(end: Tensor, model: nn.Module) -> list[str]:
    """Return the parameters of a model that a loss has used as themselves, not as what stands for them in the model.

    A loss is evaluated on substitutes of the parameters. A parameter that is held elsewhere too (in a list, a closure,
    an optimizer) is used as it is there, and would count as a constant.

    Args:
        end: The loss.
        model: The model.

    Returns:
        Their names, in the order of the model.
    """
    leaves = {id(node.variable) for node in graph_nodes([end]) if hasattr(node, "variable")}
    return [name for name, p in model.named_parameters() if id(p) in leaves] if leaves else []


def refuse_held(names: list[str]) -> NoReturn:
    """Raise the error that a loss uses parameters past the model.

    Args:
        names: The parameters.

    Raises:
        ProbeError: always.
    """
    raise ProbeError(
        f"the loss uses the parameter {names[0]} past the model, so that its derivative is incomplete: read it from "
        "the model that loss_fn is given, and register a tied parameter as an attribute of its module"
    )


@dataclass(frozen=True)
class GraphFacts:
    """Facts that the autograd graph of a loss tells about its derivatives."""

    unverified: tuple[str, ...]  # functions whose second derivative must be checked, in alphabetical order
    unit: float  # rounding unit of the coarsest dtype of a result on the way from the parameters; 0 without a graph


def graph_facts(end: Tensor) -> GraphFacts:
    """Return the functions in the graph of a tensor whose second derivative must be checked, and its coarsest dtype.

    Not to be checked are the functions of torch in `VERIFIED`, whose second derivatives the tests compare with
    differences. Others are: subclasses of `torch.autograd.Function`, because autograd differentiates their backward
    passes (one that reads a precomputed number from the forward pass, or that is marked `once_differentiable`, has no
    derivative; torch raises only where the incoming gradient has one, and treats it as zero otherwise); derivatives
    inside the loss, of which a third derivative is taken; functions whose second derivative depends on the values
    (a product with zeros); and functions that are known to be wrong, or not known.

    Args:
        end: Output of the graph, the loss.

    Returns:
        Their names, each once, and the rounding unit.
    """
    names, unit = set(), torch.finfo(end.dtype).eps if end.grad_fn is not None and end.is_floating_point() else 0.0
    for node in graph_nodes([end]):
        name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if isinstance(node, BackwardCFunction) or not (name in VERIFIED or name.startswith(STRAIGHT_THROUGH)):
            names.add(name)
        for source, output in node.next_functions:  # an output that nobody uses may be undefined, called float32
            if source is not None and (dtype := source._input_metadata[output].dtype).is_floating_point:
                unit = max(unit, torch.finfo(dtype).eps)
    return GraphFacts(tuple(sorted(names)), unit)
