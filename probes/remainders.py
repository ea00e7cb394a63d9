"""The Taylor remainder of moving one layer alone."""

from __future__ import annotations

from contextlib import nullcontext

from torch import Tensor

from lossscope.probes.objective import Objective
from lossscope.probes.taylor import step_taken

__all__ = ["layer_remainders"]


def layer_remainders(objective: Objective, displacement: Tensor, *, at: Tensor | None = None) -> dict[str, float]:
    r"""The Taylor remainder of first order of each parameter tensor, were it alone to take its part of the step.

    .. math:: R_l = L(\theta + D_l) - L(\theta) - g_l^\top D_l

    It is half the curvature of the layer's own block along its part of the step, and what is beyond. They do not add
    up to the remainder of the whole step, which has the curvature between layers too.

    Args:
        objective: The loss.
        displacement: `(n,)`, D, parameters after the step minus before.
        at: `(n,)`, the parameters before the step; None for those the model has now.

    Returns:
        Nats, by the names of the parameters. One gradient is spent, and one loss for each of them; the model is left
        bit for bit. Rounding: see `StepQuality.rounding`.

    Raises:
        ProbeError: a shape does not fit, the displacement or a loss is not finite.

    Source:
        docs/measures/step_quality.md.
    """
    with objective.at(at) if at is not None else nullcontext(), objective.evaluating():
        s, theta = step_taken(objective, displacement), objective.parameters()
        before, slopes = objective.value(), objective.gradient().double() * s.double()
        found = {}
        for name in objective.names:
            where = objective.vector.indices([name]).to(s.device)
            moved = theta.clone()
            moved[where] += s[where]
            with objective.at(moved):
                found[name] = objective.value() - before - float(slopes[where].sum())
    return found
