"""A directional derivative from two losses, without a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from torch import Tensor

from lossscope.optimizer.ascent.two_pass import Pass, RandomState, ascended
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.estimates.estimated_step import EstimatedStep
from lossscope.optimizer.update.curvature_rules import check_displacement

__all__ = ["two_losses"]


class _LossPass(Pass):
    """A pass that needs the loss alone."""

    def backward(self, loss: Tensor) -> None:
        """Keep the loss; nothing is differentiated."""
        self.keep(loss)


def two_losses(step: EstimatedStep) -> Iterator[Pass]:
    """Yield passes at `w + mu u` and `w - mu u`, and set the gradients to `(L+ - L-) / (2 mu) u`, u normal.

    The loss of the step is the mean of both. Both passes draw the same random numbers.
    """
    check_displacement({**step.settings, "params": step.parameters})
    moved = [p for p in step.parameters if p.requires_grad]
    u = [step.noise("displacement", i).normal_like(p) for i, p in enumerate(step.parameters) if p.requires_grad]
    start, losses = RandomState(step.parameters), []
    for index, mu in enumerate((step.settings["mu"], -step.settings["mu"])):
        one = _LossPass(index)
        with ascended(moved, [x * mu for x in u]), step.repeated(start) if index else nullcontext():
            yield one
        losses.append(_loss_of(step.rule, one))
    up, down = losses
    step.loss = ((up + down) / 2).to(up.dtype)
    slope = (up.double() - down.double()) / (2 * step.settings["mu"])
    for p, x in zip(moved, u, strict=True):
        p.grad = (x * slope.to(x.device)).to(p.dtype)


def _loss_of(rule: str, one: Pass) -> Tensor:
    """Return the loss of a pass."""
    if one.loss is None:
        raise OptimizerError(f"{rule} needs the loss of each pass: call p.backward(loss), or set p.loss")
    return one.loss.detach()
