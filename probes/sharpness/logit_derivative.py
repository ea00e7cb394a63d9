"""Derivative of the logits of a loss along a direction, batch by batch, in forward mode or by two backward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.functional import Substitution
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.cached_products import reason
from lossscope.probes.operators.derivative_checks import check_adjoint
from lossscope.probes.operators.second_derivative import Pairing, named

__all__ = ["logit_derivatives"]


def logit_derivatives(
    objective: Objective, call: Substitution, direction: Tensor
) -> Iterator[tuple[BatchEvaluation, Tensor, Tensor]]:
    """Yield the logits of every batch with their derivative along a direction; call it inside `evaluating`.

    The derivative takes one pass in forward mode; where a function of the model has no rule for it, two backward
    passes. On first use one backward pass of the first batch confirms it.

    Args:
        objective: The loss.
        call: Its logits as a function of the parameters, see `Objective.substitution`.
        direction: `(n,)`.

    Yields:
        The batch, its logits and their derivative, both without a graph.

    Raises:
        ProbeError: The logits can be differentiated neither way.
    """
    tangents, backward = objective.vector.leaves(direction, graph=False), False
    for at in objective.passes():
        if not backward:
            try:
                z, u = _forward(objective, call, tangents, at)
            except NotImplementedError as error:  # torch raises it for a function without a forward-mode rule
                if objective.mode == "train":  # the buffers have moved
                    raise ProbeError(f"the logits have no forward-mode derivative ({reason(error)})") from error
                backward = True
        if backward:
            z, u = _backward(objective, call, tangents, at)
        if "logits" not in objective.verified and objective.mode != "train":
            _check(objective, call, at, u, direction, "two backward passes" if backward else "forward mode")
            objective.verified |= {"logits"}
        yield at, z, u


def _forward(
    objective: Objective, call: Substitution, tangents: Sequence[Tensor], at: BatchEvaluation
) -> tuple[Tensor, Tensor]:
    """Return logits and derivative; torch.func.jvp would forbid a module to update its buffers in place."""
    with forward_ad.dual_level():
        pairs = zip(objective.copies(), tangents, strict=True)
        moving = [forward_ad.make_dual(p, v.to(p.dtype)) for p, v in pairs]  # type: ignore[no-untyped-call]
        z, u = forward_ad.unpack_dual(objective.evaluated(call, moving, at))  # type: ignore[no-untyped-call]
    return z.detach(), torch.zeros_like(z).detach() if u is None else u.detach()


def _backward(
    objective: Objective, call: Substitution, tangents: Sequence[Tensor], at: BatchEvaluation
) -> tuple[Tensor, Tensor]:
    """Return logits and derivative, as that of J'w by w, which is linear in w."""
    leaves = objective.leaves(objective.parameters())
    z = objective.evaluated(call, objective.vector.placeable(leaves), at)
    w = torch.zeros_like(z, requires_grad=True)
    pulled = objective.derivative(torch.dot(z.reshape(-1), w.reshape(-1)), leaves, graph=True, keep=True)
    with named():
        return z.detach(), Pairing(pulled).derivative(tangents, [w], last=True)[0].detach()


def _check(
    objective: Objective, call: Substitution, at: BatchEvaluation, u: Tensor, direction: Tensor, method: str
) -> None:
    """Raise unless the derivative of the logits along the direction is that of a backward pass."""
    leaves = objective.leaves(objective.parameters())
    z = objective.evaluated(call, objective.vector.placeable(leaves), at)
    back = objective.vector.joined(objective.derivative(torch.dot(z.reshape(-1), u.reshape(-1)), leaves))
    check_adjoint(objective, u, back, direction, method)
