"""Relative flatness of the last layer: traces of its Hessian blocks, weighted by the products of its rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.autograd_guards import graph_nodes
from lossscope.probes.objective.loss_terms import class_logits
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import Reference, SymmetricOperator
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["last_layer", "relative_flatness"]

_UNKNOWN: Final = "the last layer is not known"
_NAME_IT: Final = "pass relative_flatness(objective, weight=NAME) a weight with its outputs on axis 0"
_LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # a row of the weight belongs to one output


def relative_flatness(
    objective: Objective,
    *,
    weight: str | None = None,
    max_products: int = 128,
    rel: float = 0.01,
    seed: int = 0,
) -> Estimate:
    r"""Estimate the relative flatness of a layer, by default the last one.

    .. math:: \kappa = \sum_{s, s'} \langle w_s, w_{s'} \rangle \, \mathrm{tr} H_{s s'}

    :math:`w_s` is row s of the weight, the weights of one output, and :math:`H_{ss'}` the block of the Hessian between
    two rows. With :math:`K = W W^\top = L L^\top` it is the trace of :math:`(L^\top \otimes I) H (L \otimes I)`, which
    takes products with the block of the layer alone, whose derivatives cost little for the last layer.

    If the layer is multiplied by a factor and what it reads divided by it, the Hessian of the layer is divided by the
    square of the factor, so :math:`\kappa` is invariant.

    Args:
        objective: The loss.
        weight: Name of the weight, with the outputs on its first axis. Default: that of the last linear or
            convolution layer, see `last_layer`.
        max_products: Budget of products with the block of the layer, at least 2.
        rel: Stop when the standard error is below `rel` times the value (or the norm, if that is larger).
        seed: Seed of the random vectors.

    Returns:
        The number with its 95 % interval; exact if the matrix has at most 32 rows.

    Raises:
        ProbeError: The weight is unknown or no matrix, the last layer is not known, or the budget is too small.

    Source:
        H. Petzka et al. (2021), Relative flatness and generalization, arXiv:2001.00939.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([3.0])):
        ...     relative_flatness(objective).value
        18.0
    """
    name = last_layer(objective) if weight is None else objective.vector.known([weight])[0]
    if objective.graph is None:
        objective.gradient()  # which tells the coarsest dtype on the way, the rounding of the block's products too
    layer = objective.restricted([name])
    W = dict(objective.model.named_parameters())[name].detach()
    if W.ndim < 2:
        raise ProbeError(f"weight must have its outputs on the first of several axes, got {name} {tuple(W.shape)}")
    found = measure_spectrum(
        _weighted(hessian(layer), W.reshape(len(W), -1).double()),
        rel=rel,
        max_products=max_products,
        quantities=("trace",),
        seed=seed,
    )
    assert found.trace is not None  # requested above
    return found.trace


def _weighted(block: SymmetricOperator, W: Tensor) -> SymmetricOperator:
    """Return the operator (L' x I) H (L x I) with L L' = W W', of a block H whose coordinates are those of W."""
    rows, columns = W.shape
    L = W if rows > columns else torch.linalg.qr(W.mT)[1].mT  # W' = Q L', so that L is the smaller of the two
    L = L.to(block.dtype)

    def product(V: Tensor) -> Tensor:
        count = V.shape[1]
        inner = V.mT.reshape(count, L.shape[1], columns)
        image = (block @ (L @ inner).reshape(count, -1).mT).mT.reshape(count, rows, columns)
        return (L.mT @ image).reshape(count, -1).mT

    def reference() -> Reference | None:
        found = block.reference()
        if found is None:
            return None
        rounding = found.rounding * float(torch.linalg.matrix_norm(L.double(), 2)) ** 2
        return Reference(_weighted(found.operator, W), found.share, rounding)

    return SymmetricOperator(
        L.shape[1] * columns,
        product,
        dtype=block.dtype,
        device=block.device,
        cached=block.cached,
        facts=block._facts,
        reference=reference,
    )


def last_layer(objective: Objective) -> str:
    """Return the name of the weight of the last layer, through which alone all layers before it reach the outputs.

    It is read from the graph of the first batch's outputs, or of its loss where the loss names no outputs.

    Args:
        objective: The loss.

    Returns:
        The name.

    Raises:
        ProbeError: The outputs do not come from one linear or convolution layer with a weight of its own.
    """
    name = _nearest_matrix(objective)
    named = [*objective.model.named_parameters(remove_duplicate=False)]
    shared = [path for path, p in named if p is dict(named)[name]]
    if len(shared) > 1:
        raise ProbeError(f"{_UNKNOWN}: {' and '.join(shared)} are one weight; {_NAME_IT}")
    path, _, leaf = name.rpartition(".")
    if leaf != "weight" or not isinstance(objective.model.get_submodule(path), _LAYERS):
        raise ProbeError(
            f"{_UNKNOWN}: {name}, the matrix next to the outputs, is not the weight of a linear or convolution layer; "
            f"{_NAME_IT}"
        )
    return name


def _nearest_matrix(objective: Objective) -> str:
    """Return the name of the trainable matrix that the outputs are computed from last."""
    loss = objective.loss_fn
    outputs = getattr(loss, "outputs", None) or class_logits(loss) or loss
    with objective.evaluating(), torch.enable_grad():
        at = next(iter(objective.passes()))
        leaves = objective.leaves(objective.parameters())
        end = objective.evaluated(objective.substitution(outputs), objective.vector.placeable(leaves), at)
        names = {id(leaf): name for leaf, name in zip(leaves, objective.names, strict=True) if leaf.ndim > 1}
        graph = _Graph(end, names)
        nearest = next(graph.matrices(), None)
        if nearest is None:
            raise ProbeError("no trainable parameter with two or more axes enters the outputs: there is no last layer")
        name, users = graph.name_of(nearest), graph.users(nearest)
        if graph.feeds(users):
            raise ProbeError(f"{_UNKNOWN}: {name}, the matrix next to the outputs, is used before them too; {_NAME_IT}")
        if (other := next(graph.matrices(without=users), nearest)) is not nearest:
            raise ProbeError(
                f"{_UNKNOWN}: {graph.name_of(other)} enters the outputs past {name}, next to them; {_NAME_IT}"
            )
        return name


class _Graph:
    """Graph of a tensor, from its end to the matrices that it is computed from."""

    def __init__(self, end: Tensor, names: Mapping[int, str]) -> None:
        self._end, self._names = end.grad_fn, names
        self._users: dict[Any, list[Any]] = {}
        for node in graph_nodes([end]):
            for before in _inputs(node):
                self._users.setdefault(before, []).append(node)

    def name_of(self, node: Any) -> str:
        """Return the name of the matrix that a node of the graph stands for; empty if it stands for none."""
        return self._names.get(id(getattr(node, "variable", None)), "")

    def matrices(self, without: Collection[Any] = ()) -> Iterator[Any]:
        """Yield the nodes of matrices, those with the fewest functions before the end first, not through some nodes."""
        yield from filter(self.name_of, self._below([self._end], without))

    def users(self, node: Any) -> set[Any]:
        """Return the functions that take a matrix, or what is made of it alone, together with other tensors."""
        found: set[Any] = set()
        pending = [node]
        while pending:
            for user in self._users.get(pending.pop(), ()):
                (found.add if len(set(_inputs(user))) > 1 else pending.append)(user)
        return found

    def feeds(self, nodes: Collection[Any]) -> bool:
        """Return True if one of some nodes enters another one."""
        return any(before in nodes for node in nodes for before in self._below(_inputs(node)))

    def _below(self, nodes: Iterable[Any], without: Collection[Any] = ()) -> Iterator[Any]:
        """Yield some nodes and all that they are computed from, the nearest first, not through some nodes."""
        pending, seen = deque(nodes), {None, *without}
        while pending:
            node = pending.popleft()
            if node not in seen:
                seen.add(node)
                yield node
                pending += _inputs(node)


def _inputs(node: Any) -> list[Any]:
    """Return the nodes of what a function takes, one for each use."""
    return [] if node is None else [before for before, _ in node.next_functions if before is not None]
