"""Mean logit norm and classification margin, which set the scale of cross-entropy curvature."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.loss_terms import averaging_shares, class_logits
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.statistics.estimate import Estimate, rounded_estimate

__all__ = ["LogitScale", "logit_scale"]


@dataclass(frozen=True)
class LogitScale:
    """Means over the terms of the loss (samples, or tokens), weighted as in the loss."""

    norm: Estimate  # |z - mean z|, dimensionless
    margin: Estimate  # z_y minus the largest other logit, dimensionless; nan if labels are probabilities


def logit_scale(objective: Objective) -> LogitScale:
    r"""Compute the mean norm of the centered logits and the mean margin of the correct class.

    .. math:: \lVert z - \bar z\mathbf 1\rVert, \qquad z_y - \max_{c \ne y} z_c

    Adding a constant to all logits changes neither of them nor the softmax, so both are functions of the predictions. A
    confident network has a small loss and small curvature whatever its minimum looks like: compare curvature at equal
    loss, and together with these two.

    Args:
        objective: The loss; its `loss_fn` must have `logits(model, batch)` and `labels(batch)`, as `CrossEntropy` has.

    Returns:
        Both means, exact on the fixed data up to the rounding in their intervals. Cost: two forward passes.

    Raises:
        ProbeError: The loss has no `logits` or `labels`, or a logit is not finite.

    Source:
        docs/measures/norms.md. The margin is defined in P. Bartlett, D. Foster, M. Telgarsky (2017),
        Spectrally-normalized margin bounds for neural networks, arXiv:1706.08498; it is not normalized here.

    Example:
        >>> from lossscope.probes.objective.losses import CrossEntropy
        >>> data = (torch.tensor([[3.0, 4.0]]), torch.tensor([1]))
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> found = logit_scale(Objective(net, CrossEntropy(), [data]))
        >>> round(found.norm.value, 6), found.margin.value
        (0.707107, 1.0)
    """
    if class_logits(objective.loss_fn) is None or not hasattr(objective.loss_fn, "labels"):
        raise ProbeError(
            f"logit_scale requires a loss with logits and labels, got {objective.loss_kind}: use CrossEntropy(), or "
            "give your loss methods logits(model, batch) and labels(batch); all other measures do without"
        )
    begun = time.perf_counter()
    norm, margin, size = _means(objective)
    if not math.isfinite(norm):
        raise ProbeError(f"the mean norm of the logits is {norm}: they overflow at these parameters")
    rounding = number_rounding(objective, lambda other: _means(other)[:2], (norm, margin), (size, size))
    seconds = time.perf_counter() - begun
    return LogitScale(
        rounded_estimate(norm, rounding[0], seconds=seconds), rounded_estimate(margin, rounding[1], seconds=seconds)
    )


def _means(objective: Objective) -> tuple[float, float, float]:
    """Return the mean norm, the mean margin and the mean largest logit, weighted as in the loss."""
    with objective.evaluating():
        objective.require_repeatable()
        return _weighted_means(objective)


def _weighted_means(objective: Objective) -> tuple[float, float, float]:
    """Return the same; call it inside `evaluating`."""
    loss, logits = objective.loss_fn, class_logits(objective.loss_fn)
    assert logits is not None
    call, copies = objective.substitution(logits), objective.copies()
    norm = margin = size = 0.0
    for at in objective.passes():
        batch = objective.data.batches[at.index]
        labels: Tensor = loss.labels(batch)  # type: ignore[attr-defined]
        outputs = objective.evaluated(call, copies, at).detach().double()
        shares = averaging_shares(loss, outputs, batch)
        counted = shares > 0  # terms that the loss averages over
        z, shares = outputs.reshape(-1, outputs.shape[-1])[counted], shares[counted]
        lead = torch.full_like(shares, math.nan)
        if not labels.is_floating_point():
            lead = _margins(z, labels.reshape(-1)[counted].long())
        norm += at.weight * float((z - z.mean(-1, keepdim=True)).norm(dim=-1) @ shares)
        margin += at.weight * float(lead @ shares)
        size += at.weight * float((z.abs().amax(-1) * shares).sum())
    return norm, margin, size


def _margins(z: Tensor, right: Tensor) -> Tensor:
    """Return the logit of the correct class minus the largest other logit, `(N,)`; nan with a single class."""
    if z.shape[-1] < 2:
        return torch.full_like(z[:, 0], math.nan)
    if bool(((right < 0) | (right >= z.shape[-1])).any()):
        raise ProbeError(
            f"labels must be in 0 to {z.shape[-1] - 1} or -100: give your loss a method shares(outputs, batch) that is "
            "0 for terms that are left out"
        )
    correct = z.gather(-1, right[:, None])[:, 0]
    others = z.scatter(-1, right[:, None], -math.inf).amax(-1)
    return correct - others
