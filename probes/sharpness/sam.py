"""SAM sharpness: the rise of the loss after one ascent step of a given length along the gradient, by minibatch."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from operator import mul

from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.perturbation import (
    batches_of,
    mean_over_batches,
    require_resolved,
    require_size,
    scale_of,
)
from lossscope.probes.sharpness.step_quality import rounding
from lossscope.probes.statistics.estimate import Estimate
from lossscope.probes.sums import norm

__all__ = ["SamSharpness", "sam_sharpness"]


@dataclass(frozen=True)
class SamSharpness:
    """Rise of the loss after one ascent step."""

    sharpness: Estimate  # mean over the batches of L_B(theta + e) - L_B(theta), nats
    first_order: float  # what the gradients alone promise: rho times the mean of their norms, nats
    rises: tuple[float, ...]  # rise on each batch, nats


def sam_sharpness(
    objective: Objective, *, rho: float = 0.05, relative: bool = False, per_batch: bool = True
) -> SamSharpness:
    r"""Compute the rise of the loss after the ascent step of SAM.

    .. math:: \frac1n \sum_B L_B(\theta + e_B) - L_B(\theta), \qquad e_B = \rho \, \frac{D^2 g_B}{\|D g_B\|_2}

    with D = 1 for SAM and :math:`D = \mathrm{diag}(|\theta|)` for its adaptive form. To second order, with u the unit
    vector along Dg, it is :math:`\rho \|D g\| + \rho^2 u^\top D H D u / 2`: away from a minimum the first term,
    `first_order`, is most of it. The adaptive form is invariant under every diagonal map of the parameters that
    preserves the function.

    Args:
        objective: The loss; its batches should have the batch size of training.
        rho: Length of the step, relative to each weight in the adaptive form, above 0.
        relative: True for the adaptive form.
        per_batch: False for one step along the gradient of the mean over all data.

    Returns:
        The mean rise with its 95 % interval over the drawing of the batches, which contains the rounding of the losses;
        exact up to that if there is a single batch. Cost: two losses and a gradient.

    Raises:
        ProbeError: An argument is out of range, a gradient is zero, the loss after the step is not finite, or the
            parameters' dtype is too coarse for it.

    Source:
        P. Foret et al. (2021), Sharpness-aware minimization for efficiently improving generalization, arXiv:2010.01412;
        J. Kwon et al. (2021), ASAM, arXiv:2102.11600, for the adaptive form, here without its constant 0.01, which
        breaks the invariance.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([3.0])):
        ...     round(sam_sharpness(objective, rho=0.5).sharpness.value, 6)
        3.25
    """
    require_size("rho", rho)
    begun = time.perf_counter()
    theta = objective.parameters()
    scale = scale_of(theta, relative=relative)
    error = math.sqrt(len(theta)) if relative else float(norm(theta))
    require_resolved("rho", rho, error, objective.vector.unit)
    parts = batches_of(objective, per_batch=per_batch)
    weights = [weight for weight, _ in parts]
    rises, errors, lengths = zip(*(_on_batch(part, rho * scale) for _, part in parts), strict=True)
    estimate = replace(mean_over_batches(weights, rises, errors), seconds=time.perf_counter() - begun)
    return SamSharpness(estimate, math.fsum(map(mul, weights, lengths)), rises)


def _on_batch(objective: Objective, scale: Tensor) -> tuple[float, float, float]:
    """Return the rise on one batch, its rounding, and the rise to first order."""
    with objective.evaluating():
        loss, slope = objective.value(), objective.gradient() * scale
        length = float(norm(slope))
        if not length > 0:
            raise ProbeError("the gradient is zero, so that SAM has no direction: use worst_case_sharpness")
        after = objective.value_at(objective.parameters() + slope / length * scale)
    if not math.isfinite(after):
        raise ProbeError(f"the loss is {after} after the step of SAM, so that there is no rise: use a smaller rho")
    return after - loss, rounding(objective, loss, after), length
