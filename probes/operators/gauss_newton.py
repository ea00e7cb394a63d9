"""Gauss-Newton and Fisher matrices of an objective, by their products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.autograd_guards import graph_facts
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.loss_terms import row_shares
from lossscope.probes.objective.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    MeanSquaredError,
    SplitLoss,
    override_depth,
    rows,
)
from lossscope.probes.objective.objective import Objective
from lossscope.probes.objective.parameters import joined, shaped
from lossscope.probes.operators.cached_products import CachedProducts
from lossscope.probes.operators.derivative_checks import check_adjoint
from lossscope.probes.operators.method import BatchProduct, Method, stacked
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.operators.second_derivative import Pairing, batched_derivative

__all__ = ["FisherKind", "OutputCurvature", "fisher", "gauss_newton", "output_methods", "split_loss"]

OutputCurvature = Callable[[SplitLoss, Tensor, Any], Callable[[Tensor], Tensor]]  # loss, outputs, batch -> (u -> S u)


def split_loss(objective: Objective) -> SplitLoss:
    """Return the loss function of an objective after checking that it is `of_outputs(outputs(model, batch), batch)`.

    Args:
        objective: The objective; the first batch is evaluated both ways unless the loss is `CrossEntropy` or
            `MeanSquaredError`.

    Returns:
        Its `loss_fn`.

    Raises:
        ProbeError: the loss does not split into outputs and a function of them, or the two give another value.
    """
    loss: Any = objective.loss_fn
    if not isinstance(loss, SplitLoss):
        raise ProbeError(
            f"loss_fn must have the methods outputs(model, batch) and of_outputs(outputs, batch), got "
            f"{objective.loss_kind}: add them, or use CrossEntropy() or MeanSquaredError()"
        )
    if type(loss).__call__ in (CrossEntropy.__call__, MeanSquaredError.__call__, BinaryCrossEntropy.__call__):
        return loss  # whose value is computed that way
    with objective.evaluating():
        at, again = next(objective.passes()), next(objective.passes())
        whole = float(objective.loss(objective.copies(), at).detach())
        outputs = objective.evaluated(objective.substitution(loss.outputs), objective.copies(), again)
        parts = float(loss.of_outputs(outputs, objective.data.batches[0]).detach())
    if not abs(whole - parts) <= math.sqrt(torch.finfo(objective.dtype).eps) * max(abs(whole), abs(parts)):
        raise ProbeError(
            f"loss_fn must equal of_outputs(outputs(model, batch), batch), got {whole:.6g} and {parts:.6g} {at.where} "
            f"from {objective.loss_kind}: make both the same mean"
        )
    return loss


def output_methods(loss: SplitLoss, curvature: OutputCurvature) -> tuple[Method, ...]:
    """Return the methods of taking products with J' S J, the default first.

    Args:
        loss: The loss.
        curvature: Returns the product with S at given outputs of a batch.

    Returns:
        The methods.
    """
    return (
        Method("reverse", partial(_reverse, loss, curvature), is_gradient=True),
        Method("batched", partial(_batched, loss, curvature), width=8, is_gradient=True),
        Method("forward", partial(_forward, loss, curvature), fallback=True),
    )


@dataclass(frozen=True)
class _Outputs:
    """Outputs for a batch with their graph, and the curvature of the loss with respect to them."""

    objective: Objective
    leaves: Sequence[Tensor]  # the parameters
    outputs: Tensor
    multiply: Callable[[Tensor], Tensor]  # u -> S u, shaped like the outputs

    def pullback(self, w: Tensor, *, graph: bool = False) -> list[Tensor]:
        """Return J'w for w of the shape of the outputs, shaped like the parameters, with its graph if requested."""
        along = torch.dot(self.outputs.reshape(-1), w.reshape(-1))
        return self.objective.derivative(along, self.leaves, graph=graph, keep=True)


def _outputs(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: BatchEvaluation) -> _Outputs:
    """Evaluate the outputs for a batch."""
    leaves, batch = objective.leaves(), objective.data.batches[at.index]
    outputs: Tensor = objective.evaluated(objective.substitution(loss.outputs), objective.vector.placeable(leaves), at)
    objective.validated_loss(loss.of_outputs(outputs.detach(), batch), at)
    return _Outputs(objective, leaves, outputs, curvature(loss, outputs.detach(), batch))


def _reverse(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Compute J v as the derivative of J'w by w, which is linear in w, then J'(S J v), by backward passes only."""
    made = _outputs(loss, curvature, objective, at)
    w = torch.zeros_like(made.outputs, requires_grad=True)
    pairing = Pairing(made.pullback(w, graph=True))

    def push(row: Tensor) -> Tensor:
        return pairing.derivative(shaped(row, made.leaves), [w], last=False)[0]

    _check_jacobian(made, push if pairing.ends else None, "reverse")
    return BatchProduct(_by_columns(made, push, bool(pairing.ends)), pairing.ends, made.leaves)


def _batched(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Compute the products of `_reverse` for all columns in two backward passes (`is_grads_batched`)."""
    made = _outputs(loss, curvature, objective, at)
    w = torch.zeros_like(made.outputs, requires_grad=True)
    pulled = made.pullback(w, graph=True)
    pairing = Pairing(pulled)

    def push(row: Tensor) -> Tensor:
        return pairing.derivative(shaped(row, made.leaves), [w], last=False)[0]

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        u = batched_derivative(pulled, shaped(rows, made.leaves), [w], last=False)
        curved = torch.stack([made.multiply(one) for one in u.view(len(rows), *w.shape)])
        return batched_derivative([made.outputs], [curved], made.leaves, last=False)

    _check_jacobian(made, push if pairing.ends else None, "reverse")
    return BatchProduct(multiply, pairing.ends, made.leaves)


def _forward(loss: SplitLoss, curvature: OutputCurvature, objective: Objective, at: BatchEvaluation) -> BatchProduct:
    """Compute J v in forward mode, then J'(S J v) by a backward pass; half the graph is kept."""
    if objective.mode == "train":
        raise ProbeError("method='forward' does not support mode='train', which updates buffers: use mode='frozen'")
    made = _outputs(loss, curvature, objective, at)
    push = partial(_pushforward, loss, objective, at)
    depends = made.outputs.requires_grad
    _check_jacobian(made, push if depends else None, "forward")
    return BatchProduct(_by_columns(made, push, depends), [made.outputs], made.leaves)


def _check_jacobian(made: _Outputs, push: Callable[[Tensor], Tensor] | None, method: str) -> None:
    """Raise if a method gets J v silently wrong: it is compared with J'w once per objective, by one backward pass.

    For backward passes only this is done where a function in the graph is not known to be right.
    """
    objective, name = made.objective, f"Jacobian by {method}"
    if push is None or name in objective.verified:
        return
    facts = graph_facts(made.outputs)
    objective.vector.unit = max(objective.vector.unit, facts.unit)
    if facts.unverified or method != "reverse":
        drawn = torch.randn(objective.size, generator=torch.Generator().manual_seed(0))
        direction = drawn.to(objective.device, objective.dtype)
        image = push(direction).detach()
        check_adjoint(objective, image, joined(made.pullback(image)), direction, method)
    objective.verified |= {name}


def _by_columns(made: _Outputs, push: Callable[[Tensor], Tensor], depends: bool) -> Callable[[Tensor, bool], Tensor]:
    """Return products J'(S J v) taken column by column; all zero unless the outputs depend on the parameters."""

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        if not depends:
            return torch.zeros_like(rows)
        return stacked(joined(made.pullback(made.multiply(push(row)))) for row in rows)

    return multiply


def _pushforward(loss: SplitLoss, objective: Objective, at: BatchEvaluation, direction: Tensor) -> Tensor:
    """Return J v."""
    function, tangents = objective.substitution(loss.outputs), objective.vector.split(direction)
    # not torch.func.jvp, inside which a module cannot update its buffers in place
    with forward_ad.dual_level():
        pairs = zip(objective.copies(), tangents, strict=True)
        moving = [forward_ad.make_dual(p, t) for p, t in pairs]  # type: ignore[no-untyped-call]
        z, u = forward_ad.unpack_dual(objective.evaluated(function, moving, at))  # type: ignore[no-untyped-call]
    return torch.zeros_like(z) if u is None else u.detach()


FisherKind = Literal["true", "empirical"]


def gauss_newton(objective: Objective, *, method: str = "reverse", memory: float = 2**30) -> ObjectiveOperator:
    r"""Return the generalized Gauss-Newton matrix :math:`J^\top S J` of an objective.

    J is the Jacobian of the model's outputs with respect to the parameters and S the Hessian of the mean loss with
    respect to the outputs. The matrix is the Hessian of the loss of the linearized model: positive semi-definite where
    the loss is convex in the outputs, equal to the Hessian where the residuals vanish, and of equal trace for a network
    of ReLU and linear layers.

    Args:
        objective: The loss; its `loss_fn` must split into `outputs` and `of_outputs`, as `CrossEntropy` and
            `MeanSquaredError` do.
        method: One of `reverse` (default: J v as the derivative of J'w by w, by backward passes only; where it
            raises, `forward` replaces it), `batched` (`reverse` for 8 columns at once) and `forward` (J v in forward
            mode); see `hessian`.
        memory: Upper bound in bytes for the cached graphs. Default: 1 GiB.

    Returns:
        The operator.

    Raises:
        ProbeError: the loss does not split, its two parts do not give the loss, or the method is unknown.

    Source:
        N. Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent, Neural
        Computation 14(7), 1723-1738.
    """
    return _operator(objective, _hessian_of_outputs, method, memory)


def fisher(
    objective: Objective, kind: FisherKind = "true", *, method: str = "reverse", memory: float = 2**30
) -> ObjectiveOperator:
    r"""Return the Fisher information matrix of an objective's model, true or empirical.

    The true Fisher is the mean over the terms of :math:`J^\top F J`, with F the Fisher matrix of the distribution
    that the outputs parametrize: :math:`\mathrm{diag}\,p - p p^\top` for a softmax, and for a squared error the
    inverse variance of the Gaussian whose negative log-likelihood the loss is. It does not depend on the labels; with
    class indices as labels, and for squared errors, it equals the Gauss-Newton matrix.

    The empirical Fisher is :math:`\frac1N \sum_i g_i g_i^\top`, with :math:`g_i` the gradient of the i-th term of
    the mean (a sample, or a token): the second moment of the gradients, which approximates the Fisher matrix only at
    a perfect fit. Where the mean is weighted (class weights), so is this one: a weight of 2 is a sample twice.
    The gradients are never formed: with :math:`r_i` the gradient of a term with respect to its outputs it is the mean
    of :math:`J_i^\top r_i r_i^\top J_i`.

    Args:
        objective: The loss; its `loss_fn` must split into `outputs` and `of_outputs`, and for the true Fisher have
            `model_fisher`, as `CrossEntropy` and `MeanSquaredError` do.
        kind: `true` or `empirical`.
        method: As for `gauss_newton`.
        memory: Upper bound in bytes for the cached graphs. Default: 1 GiB.

    Returns:
        The operator, positive semi-definite.

    Raises:
        ProbeError: the kind or the method is unknown, the loss does not split, its two parts do not give the loss, or
            it is the negative log-likelihood of no known distribution.

    Source:
        F. Kunstner, L. Balles, P. Hennig (2019), Limitations of the empirical Fisher approximation for natural gradient
        descent, arXiv:1905.12558.
    """
    if kind not in get_args(FisherKind):
        raise ProbeError(f"kind must be one of {', '.join(get_args(FisherKind))}, got {kind!r}")
    if kind == "true" and not hasattr(objective.loss_fn, "model_fisher"):
        raise ProbeError(
            f"the true Fisher matrix needs the method model_fisher(outputs, batch), which {objective.loss_kind} lacks: "
            "add it, use CrossEntropy() or MeanSquaredError(), or pass kind='empirical'"
        )
    curvature = _fisher_of_model if kind == "true" else _outer_products
    return _operator(objective, curvature, method, memory)


def _operator(objective: Objective, curvature: OutputCurvature, method: str, memory: float) -> ObjectiveOperator:
    """Return the operator J' S J, with S the curvature of the loss with respect to the outputs."""
    found: ObjectiveOperator = objective.operator(lambda own: _own_operator(own, curvature, method, memory))
    return found


def _own_operator(objective: Objective, curvature: OutputCurvature, method: str, memory: float) -> ObjectiveOperator:
    """Return the operator of an objective whose batches are all in this process."""
    loss = split_loss(objective)
    products = CachedProducts(objective, output_methods(loss, curvature), method=method, memory=memory)
    return products.operator(
        lambda names: _own_operator(objective.restricted(names), curvature, method, memory),
        lambda other: _own_operator(other, curvature, "reverse", 0.0),
    )


def _hessian_of_outputs(loss: Any, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
    """Return the product with the Hessian of the loss with respect to the outputs."""
    # a subclass that overrides of_outputs alone inherits a closed form that no longer fits
    if override_depth(loss, "hessian_of_outputs") <= override_depth(loss, "of_outputs"):
        closed: Callable[[Tensor], Tensor] = loss.hessian_of_outputs(outputs, batch)
        return closed
    z = outputs.clone().requires_grad_()
    slope = torch.autograd.grad(loss.of_outputs(z, batch), z, create_graph=True)[0]
    if not slope.requires_grad:
        return torch.zeros_like
    return lambda u: torch.autograd.grad(slope, z, u, retain_graph=True)[0]


def _fisher_of_model(loss: Any, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
    """Return the product with the Fisher matrix of the model's own label distribution, with respect to the outputs."""
    inherited = override_depth(loss, "model_fisher") > override_depth(loss, "of_outputs")
    if inherited and not isinstance(loss, CrossEntropy):  # which measures what its subclass averages
        raise ProbeError(
            f"{type(loss).__name__} overrides of_outputs and not model_fisher, which no longer fits: override both"
        )
    closed: Callable[[Tensor], Tensor] = loss.model_fisher(outputs, batch)
    return closed


def _outer_products(loss: Any, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
    """Return the product with the mean over the terms of r r', r the gradient of one term by its outputs."""
    z = outputs.clone().requires_grad_()
    slope = rows(torch.autograd.grad(loss.of_outputs(z, batch), z)[0])  # r times the share of its term
    shares = row_shares(loss, outputs, batch)[:, None]
    if bool(slope[shares[:, 0] == 0].any()):
        raise ProbeError(
            "the empirical Fisher matrix needs a positive share of every term with a gradient: a class of weight 0 has "
            "one under label smoothing"
        )
    inverse = torch.where(shares > 0, 1 / shares, 0).to(slope)
    return lambda u: (inverse * slope * (slope * rows(u)).sum(1, keepdim=True)).reshape(u.shape)
