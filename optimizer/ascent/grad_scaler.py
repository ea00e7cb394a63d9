"""Detection of a `GradScaler` that takes the step, and of gradients that nothing would unscale."""

from __future__ import annotations

import sys

import torch

from lossscope.optimizer.errors import OptimizerError

__all__ = ["GradScalerGuard"]


class GradScalerGuard:
    """Track whether a `GradScaler` is in use: passed to `passes()`, or found among the callers of `step()`."""

    def __init__(self) -> None:
        self._expected = False

    def begin(self, scaler: torch.amp.GradScaler | None) -> None:
        """Note the scaler that `passes()` was given, if any."""
        self._expected = scaler is not None and scaler.is_enabled()

    def check(self, *, closure: bool) -> bool:
        """Return True if a scaler takes this step.

        A step that is rejected because its scaler was left out can still be taken by the scaler.

        Args:
            closure: True if the step computes its own gradients.

        Raises:
            OptimizerError: A scaler takes a step with a closure, or `passes()` was given a scaler and the step is taken
                without it.
        """
        scaled = _called_by_scaler()
        if scaled and closure:
            raise OptimizerError(
                "a GradScaler took a step with a closure, and nothing would unscale the gradients of the closure: run "
                "`for p in optimizer.passes(model, scaler=scaler): scaler.scale(loss).backward()`, then "
                "scaler.step(optimizer)"
            )
        if self._expected and not scaled and not closure:
            raise OptimizerError(
                "passes() was given a GradScaler and step() was called without it, so the gradients are still scaled: "
                "call scaler.step(optimizer) instead of optimizer.step()"
            )
        return scaled

    def settle(self, *, scaled: bool, sync: bool) -> None:
        """Forget the scaler, once the gradients of the step are known.

        Args:
            scaled: Result of `check`.
            sync: True if the step has two gradients.

        Raises:
            OptimizerError: Only one of two gradients is unscaled because `passes()` was not given the scaler.
        """
        expected, self._expected = self._expected, False
        if scaled and not expected and sync:
            raise OptimizerError(
                "a GradScaler has unscaled the second gradient of this step but not the first, because passes() was "
                "not given the scaler: call optimizer.passes(model, scaler=scaler)"
            )


def _called_by_scaler() -> bool:
    """Return True if an enabled `GradScaler` is among the callers.

    A scaler leaves no trace on an optimizer without `_step_supports_amp_scaling`, and one that declares this may not be
    clipped in Lightning. The call stack is the only place left that shows it without side effects.
    """
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code.co_name == "step":
            owner = frame.f_locals.get("self")
            if isinstance(owner, torch.amp.GradScaler) and owner.is_enabled():
                return True
    return False
