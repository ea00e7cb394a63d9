"""Whether a GradScaler stands between the losses and the step, and whether both sides were told of it."""

from __future__ import annotations

import torch

from lossscope.optimizer.refusals import (
    refuse_a_scaled_closure,
    refuse_a_step_without_its_scaler,
    refuse_mixed_units,
)

__all__ = ["GradScalerGuard"]


class GradScalerGuard:
    """What is known of a scaler: `passes()` is told of it, and right before it calls `step()` it asks a question."""

    def __init__(self) -> None:
        self._told = self._asked = False

    def begin(self, scaler: torch.amp.GradScaler | None) -> None:
        """Passes begin, with this scaler or none."""
        self._told, self._asked = scaler is not None and scaler.is_enabled(), False

    def ask(self) -> None:
        """A scaler is about to unscale the gradients and to call `step()`."""
        self._asked = True

    def check(self, *, closure: bool) -> bool:
        """Whether a scaler takes this step; refused where nothing would unscale its gradients.

        A step that is refused as its scaler was left out may still be taken by the scaler.

        Args:
            closure: Whether the step makes its own gradients.

        Raises:
            OptimizerError: A scaler takes a step with a closure, or `passes()` was told of one that does not take it.
        """
        asked, self._asked = self._asked, False
        if asked and closure:
            refuse_a_scaled_closure()
        if self._told and not asked and not closure:
            refuse_a_step_without_its_scaler()
        return asked

    def settle(self, *, scaled: bool, sync: bool) -> None:
        """The gradients of the step are there, and the scaler is forgotten.

        Args:
            scaled: What `check` gave.
            sync: Whether the step has two gradients.

        Raises:
            OptimizerError: Only one of two gradients is unscaled, as `passes()` was not told.
        """
        told, self._told = self._told, False
        if scaled and not told and sync:
            refuse_mixed_units()
