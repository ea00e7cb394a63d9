"""The ways to multiply J' S J by vectors, with J the derivative of a model's outputs and S a curvature by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import Pass
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError, SplitLoss
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.method import BatchProduct, Method

__all__ = ["OutputCurvature", "output_methods", "split_loss"]

OutputCurvature = Callable[[SplitLoss, Tensor, Any], Callable[[Tensor], Tensor]]  # loss, outputs, batch -> (u -> S u)


def split_loss(objective: Objective) -> SplitLoss:
    """The loss of an objective, once it is known to be `of_outputs(outputs(model, batch), batch)`.

    Args:
        objective: The objective; where the loss is not one of ours, its first batch is evaluated both ways.

    Returns:
        Its `loss_fn`.

    Raises:
        ProbeError: it has no such halves, or they make another loss.
    """
    loss: Any = objective.loss_fn
    if not isinstance(loss, SplitLoss):
        raise ProbeError(
            f"the loss {objective.loss_kind} shows no outputs, which this matrix is made of: use CrossEntropy() or "
            "MeanSquaredError(), or give your loss the methods outputs(model, batch) and of_outputs(outputs, batch)"
        )
    if type(loss).__call__ in (CrossEntropy.__call__, MeanSquaredError.__call__):
        return loss  # which is made of its halves
    with objective.evaluating(), torch.no_grad():
        at, again = next(objective.passes()), next(objective.passes())
        whole = float(objective.loss(objective.copies(), at))
        outputs = objective.evaluated(objective.substitution(loss.outputs), objective.copies(), again)
        parts = float(loss.of_outputs(outputs, objective.data.batches[0]))
    if not abs(whole - parts) <= math.sqrt(torch.finfo(objective.dtype).eps) * max(abs(whole), abs(parts)):
        raise ProbeError(
            f"the loss {objective.loss_kind} gives {whole:.6g} {at.where}, and its of_outputs(outputs(...)) "
            f"{parts:.6g}: make both the same mean"
        )
    return loss


def output_methods(loss: SplitLoss, curvature: OutputCurvature) -> tuple[Method, ...]:
    """The ways to take products with J' S J, the plain one first.

    Args:
        loss: The loss.
        curvature: S at given outputs of a batch, as a function.

    Returns:
        The methods.
    """
    return (
        Method("reverse", partial(_reverse, loss, curvature), is_gradient=True),
        Method("batched", partial(_batched, loss, curvature), widths=(2, 8), is_gradient=True, first_seconds=0.6),
        Method("forward", partial(_forward, loss, curvature), first_seconds=2.0),
    )


@dataclass(frozen=True)
class _Outputs:
    """The outputs for a batch with their graph, and the curvature of the loss by them."""

    objective: Objective
    theta: Tensor  # (n,), the leaf
    outputs: Tensor
    curved: Callable[[Tensor], Tensor]  # u -> S u, shaped like the outputs

    def pulled(self, w: Tensor, *, graph: bool = False) -> Tensor:
        """J'w for w of the outputs' shape, with its graph if asked for."""
        along = torch.dot(self.outputs.reshape(-1), w.reshape(-1))
        return self.objective.derivative(along, self.theta, graph=graph, keep=True)


def _outputs(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: Pass) -> _Outputs:
    """The outputs for a batch."""
    theta, batch = objective.leaf(), objective.data.batches[at.index]
    leaves = objective.vector.views(theta, apart=True)
    outputs: Tensor = objective.evaluated(objective.substitution(loss.outputs), leaves, at)
    objective.sound(loss.of_outputs(outputs.detach(), batch), at)
    return _Outputs(objective, theta, outputs, curvature(loss, outputs.detach(), batch))


def _reverse(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: Pass) -> BatchProduct:
    """J v as the derivative of J'w by w, which is linear in w, then J' of S J v; by backward passes alone."""
    made = _outputs(loss, curvature, objective, at)
    w = torch.zeros_like(made.outputs, requires_grad=True)
    pulled = made.pulled(w, graph=True)

    def column(row: Tensor) -> Tensor:
        u = torch.autograd.grad(torch.dot(pulled, row), w, retain_graph=True)[0]
        return made.pulled(made.curved(u))

    return BatchProduct(_by_columns(column, pulled.requires_grad), [pulled], [made.theta])


def _batched(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: Pass) -> BatchProduct:
    """The same for all columns in two backward passes (`is_grads_batched`)."""
    made = _outputs(loss, curvature, objective, at)
    w = torch.zeros_like(made.outputs, requires_grad=True)
    pulled = made.pulled(w, graph=True)

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        if not pulled.requires_grad:
            return torch.zeros_like(rows)
        u = torch.autograd.grad(pulled, w, rows, retain_graph=True, is_grads_batched=True)[0]
        curved = torch.stack([made.curved(one) for one in u])
        return torch.autograd.grad(made.outputs, made.theta, curved, retain_graph=True, is_grads_batched=True)[0]

    return BatchProduct(multiply, [pulled], [made.theta])


def _forward(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: Pass) -> BatchProduct:
    """J v by a forward pass with tangents, then J' of S J v by a backward pass; half the graph is kept."""
    if objective.mode == "train":
        raise ProbeError("method='forward' cannot follow buffers that move in train mode: use mode='frozen'")
    made = _outputs(loss, curvature, objective, at)

    def column(row: Tensor) -> Tensor:
        return made.pulled(made.curved(_pushed(loss, objective, at, row)))

    return BatchProduct(_by_columns(column, made.outputs.requires_grad), [made.outputs], [made.theta])


def _by_columns(column: Callable[[Tensor], Tensor], curved: bool) -> Callable[[Tensor, bool], Tensor]:
    """Products one column after the other; all zero where nothing is `curved`."""

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        return torch.stack([column(row) for row in rows]) if curved else torch.zeros_like(rows)

    return multiply


def _pushed(loss: SplitLoss, objective: Objective, at: Pass, direction: Tensor) -> Tensor:
    """J v."""
    function, tangents = objective.substitution(loss.outputs), objective.vector.split(direction)
    # not torch.func.jvp: inside it a module may not update its buffers in place
    with torch.no_grad(), forward_ad.dual_level():
        pairs = zip(objective.copies(), tangents, strict=True)
        moving = [forward_ad.make_dual(p, t) for p, t in pairs]  # type: ignore[no-untyped-call]
        z, u = forward_ad.unpack_dual(objective.evaluated(function, moving, at))  # type: ignore[no-untyped-call]
    return torch.zeros_like(z) if u is None else u
