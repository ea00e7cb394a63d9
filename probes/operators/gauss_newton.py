"""The Gauss-Newton matrix and the Fisher matrices of an objective, by their products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError, SplitLoss, rows
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.cached_products import CachedProducts
from lossscope.probes.operators.method import BatchProduct, Method

__all__ = ["FisherKind", "OutputCurvature", "fisher", "gauss_newton", "output_methods", "split_loss"]

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


def _outputs(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: BatchEvaluation) -> _Outputs:
    """The outputs for a batch."""
    theta, batch = objective.leaf(), objective.data.batches[at.index]
    leaves = objective.vector.views(theta, apart=True)
    outputs: Tensor = objective.evaluated(objective.substitution(loss.outputs), leaves, at)
    objective.validated_loss(loss.of_outputs(outputs.detach(), batch), at)
    return _Outputs(objective, theta, outputs, curvature(loss, outputs.detach(), batch))


def _reverse(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """J v as the derivative of J'w by w, which is linear in w, then J' of S J v; by backward passes alone."""
    made = _outputs(loss, curvature, objective, at)
    w = torch.zeros_like(made.outputs, requires_grad=True)
    pulled = made.pulled(w, graph=True)

    def column(row: Tensor) -> Tensor:
        u = torch.autograd.grad(torch.dot(pulled, row), w, retain_graph=True)[0]
        return made.pulled(made.curved(u))

    return BatchProduct(_by_columns(column, pulled.requires_grad), [pulled], [made.theta])


def _batched(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: BatchEvaluation) -> BatchProduct:
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


def _forward(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: BatchEvaluation) -> BatchProduct:
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


def _pushed(loss: SplitLoss, objective: Objective, at: BatchEvaluation, direction: Tensor) -> Tensor:
    """J v."""
    function, tangents = objective.substitution(loss.outputs), objective.vector.split(direction)
    # not torch.func.jvp: inside it a module may not update its buffers in place
    with torch.no_grad(), forward_ad.dual_level():
        pairs = zip(objective.copies(), tangents, strict=True)
        moving = [forward_ad.make_dual(p, t) for p, t in pairs]  # type: ignore[no-untyped-call]
        z, u = forward_ad.unpack_dual(objective.evaluated(function, moving, at))  # type: ignore[no-untyped-call]
    return torch.zeros_like(z) if u is None else u


FisherKind = Literal["true", "empirical"]


def gauss_newton(objective: Objective, *, method: str = "auto", memory: float = 2**30) -> SymmetricOperator:
    r"""The generalized Gauss-Newton matrix :math:`J^\top S J` of an objective.

    J is the derivative of the model's outputs by the parameters and S the Hessian of the mean loss by the outputs. It
    is the Hessian of the loss with the model replaced by its linearisation: positive semi-definite where the loss is
    convex in the outputs, equal to the Hessian where the residuals vanish, and of equal trace for a network of ReLU
    and linear layers.

    Args:
        objective: The loss; its `loss_fn` must split into `outputs` and `of_outputs`, as `CrossEntropy` and
            `MeanSquaredError` do.
        method: `auto`, or one of `reverse` (J v as the derivative of J'w by w, by backward passes alone), `batched`
            (the same for a block of columns) and `forward` (J v by a forward pass with tangents); see `hessian`.
        memory: Bytes that the kept graphs of `cached` may hold together.

    Returns:
        The operator.

    Raises:
        ProbeError: the loss does not split, its halves do not make the loss, or the method is unknown.

    Source:
        N. Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent, Neural
        Computation 14(7), 1723-1738.
    """
    return _operator("gauss_newton", objective, _hessian_of_outputs, method, memory)


def fisher(
    objective: Objective, kind: FisherKind = "true", *, method: str = "auto", memory: float = 2**30
) -> SymmetricOperator:
    r"""The Fisher matrix of an objective's model, true or empirical.

    The true one is the mean over the terms of :math:`J^\top F J`, F the Fisher matrix of the distribution that the
    outputs stand for: :math:`\mathrm{diag}\,p - p p^\top` for a softmax, and for a squared error the inverse
    variance of the Gaussian whose likelihood the loss is. The labels play no part in it; with class numbers as labels,
    and for squared errors, it is the Gauss-Newton matrix.

    The empirical one is :math:`\frac1N \sum_i g_i g_i^\top`, :math:`g_i` the gradient of the i-th term of the mean
    (a sample, or a token): no approximation of the Fisher matrix away from a perfect fit, but the second moment of
    the gradients. They are never formed: with :math:`r_i` the slope of a term by its outputs it is the mean of
    :math:`J_i^\top r_i r_i^\top J_i`.

    Args:
        objective: The loss; its `loss_fn` must split into `outputs` and `of_outputs`, and for the true one have
            `model_fisher`, as `CrossEntropy` and `MeanSquaredError` do.
        kind: `true` or `empirical`.
        method: As for `gauss_newton`.
        memory: Bytes that the kept graphs of `cached` may hold together.

    Returns:
        The operator, positive semi-definite.

    Raises:
        ProbeError: the kind or the method is unknown, the loss does not split, its halves do not make the loss, or it
            stands for no distribution.

    Source:
        F. Kunstner, L. Balles, P. Hennig (2019), Limitations of the empirical Fisher approximation for natural gradient
        descent, arXiv:1905.12558.
    """
    if kind not in get_args(FisherKind):
        raise ProbeError(f"kind={kind!r} is unknown: use one of {', '.join(get_args(FisherKind))}")
    if kind == "true" and not hasattr(objective.loss_fn, "model_fisher"):
        raise ProbeError(
            f"the loss {objective.loss_kind} stands for no distribution to take the true Fisher matrix of: use "
            "CrossEntropy() or MeanSquaredError(), give it a method model_fisher(outputs, batch), or take "
            "kind='empirical'"
        )
    curvature = _fisher_of_model if kind == "true" else _outer_products
    return _operator(f"{kind} fisher", objective, curvature, method, memory)


def _operator(
    matrix: str, objective: Objective, curvature: OutputCurvature, method: str, memory: float
) -> SymmetricOperator:
    """The operator J' S J with S the curvature of the loss by the outputs."""
    loss = split_loss(objective)
    products = CachedProducts(matrix, objective, output_methods(loss, curvature), method=method, memory=memory)
    return products.operator(lambda names: _operator(matrix, objective.restricted(names), curvature, method, memory))


def _hessian_of_outputs(loss: Any, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
    """The Hessian of the loss by the outputs."""
    if _depth(loss, "hessian_of_outputs") <= _depth(loss, "of_outputs"):  # not that of a loss it has since replaced
        closed: Callable[[Tensor], Tensor] = loss.hessian_of_outputs(outputs, batch)
        return closed
    z = outputs.clone().requires_grad_()
    slope = torch.autograd.grad(loss.of_outputs(z, batch), z, create_graph=True)[0]
    if not slope.requires_grad:
        return torch.zeros_like
    return lambda u: torch.autograd.grad(slope, z, u, retain_graph=True)[0]


def _depth(loss: Any, name: str) -> float:
    """How far up among the classes of a loss a method is defined; endless where it is not."""
    found = (depth for depth, kind in enumerate(type(loss).__mro__) if name in vars(kind))
    return next(found, math.inf)


def _fisher_of_model(loss: Any, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
    """The Fisher matrix of the model's own distribution of labels, by the outputs."""
    closed: Callable[[Tensor], Tensor] = loss.model_fisher(outputs, batch)
    return closed


def _outer_products(loss: Any, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
    """The mean over the terms of r r', r the slope of one term by its outputs."""
    z = outputs.clone().requires_grad_()
    slope = rows(torch.autograd.grad(loss.of_outputs(z, batch), z)[0])  # r / N
    count = getattr(loss, "terms", None)
    terms = len(slope) if count is None else count(outputs, batch)
    return lambda u: (terms * slope * (slope * rows(u)).sum(1, keepdim=True)).reshape(u.shape)
