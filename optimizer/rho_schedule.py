"""Schedule of the ascent radius rho that follows the learning rate."""

from __future__ import annotations

import math

from lossscope.optimizer.base import TwoPassOptimizer
from lossscope.optimizer.errors import OptimizerError

__all__ = ["RhoSchedule"]


class RhoSchedule:
    r"""Set the radius to the same fraction of its range as the learning rate has of its own.

    .. math:: \rho_t = \rho_{min} + (\rho_{max} - \rho_{min}) (\eta_t - \eta_{min}) / (\eta_{max} - \eta_{min})

    :math:`\eta_t` is the learning rate of the first parameter group; a learning rate outside its bounds, for example
    during a warm-up, is clipped to them. Call `step()` after that of the scheduler. The radius is stored in every
    parameter group, so the schedule has no state of its own: create the schedule, then load the optimizer's state.

    Args:
        optimizer: An optimizer that ascends.
        rho_max: Radius at `lr_max`, at least `rho_min`.
        lr_max: The largest learning rate.
        rho_min: Radius at `lr_min`, at least 0.
        lr_min: The smallest learning rate, below `lr_max`.

    Raises:
        OptimizerError: The optimizer takes one pass per step, or the bounds are not in order.

    Source:
        J. Zhuang et al. (2022), Surrogate gap minimization improves sharpness-aware training, algorithm 1.
    """

    def __init__(
        self, optimizer: TwoPassOptimizer, *, rho_max: float, lr_max: float, rho_min: float = 0.0, lr_min: float = 0.0
    ) -> None:
        if not isinstance(optimizer, TwoPassOptimizer) or optimizer.param_groups[0]["mode"] == "base":
            raise OptimizerError(f"this {type(optimizer).__name__} takes one pass a step and has no radius to schedule")
        if not 0 <= rho_min <= rho_max < math.inf:
            raise OptimizerError(f"rho_min={rho_min} and rho_max={rho_max} must be finite, in order and at least 0")
        if not 0 <= lr_min < lr_max < math.inf:
            raise OptimizerError(f"lr_min={lr_min} must be at least 0 and below lr_max={lr_max}, which must be finite")
        self._optimizer = optimizer
        self._rho, self._lr = (rho_min, rho_max), (lr_min, lr_max)
        self.step()

    def step(self) -> None:
        """Set the radius for the present learning rate."""
        (low, high), lr = self._lr, float(self._optimizer.param_groups[0]["lr"])
        share = min(1.0, max(0.0, (lr - low) / (high - low)))
        for group in self._optimizer.param_groups:
            group["rho"] = self._rho[0] + (self._rho[1] - self._rho[0]) * share
