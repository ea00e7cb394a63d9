"""The Taylor remainder of moving one layer alone."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.step_quality import rounding, step_taken

__all__ = ["LayerRemainders", "layer_remainders"]


@dataclass(frozen=True)
class LayerRemainders:
    """The remainder of each parameter tensor."""

    by_name: dict[str, float]  # nats
    rounding: float  # nats that each may be off by


def layer_remainders(objective: Objective, displacement: Tensor, *, at: Tensor | None = None) -> LayerRemainders:
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
        bit for bit. What is below the rounding is unknown, not small.

    Raises:
        ProbeError: a shape does not fit, the displacement or a loss is not finite.

    Source:
        docs/measures/step_quality.md.
    """
    with objective.at(at) if at is not None else nullcontext(), objective.evaluating():
        s, theta = step_taken(objective, displacement), objective.parameters()
        before, slopes = objective.value(), objective.gradient().double() * s.double()
        found, losses = {}, [before]
        for name in objective.names:
            where = objective.vector.indices([name]).to(s.device)
            moved = theta.clone()
            moved[where] += s[where]
            with objective.at(moved):
                losses.append(objective.value())
            found[name] = losses[-1] - before - float(slopes[where].sum())
    return LayerRemainders(found, rounding(objective, *losses))
