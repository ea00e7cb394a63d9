"""What the passes of a step are to the loop that runs them, and what they leave for the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from lossscope.optimizer.surrogate import SURROGATES
from lossscope.optimizer.trigger import Decision

__all__ = ["Pass", "Plan"]


@dataclass
class Pass:
    """One forward and backward pass of a step: index 0 at the parameters, 1 at the ascended ones."""

    index: int
    loss: Tensor | None = None

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()`, remembering the loss so that records and `step()` can hand it on."""
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()
        loss.backward()  # type: ignore[no-untyped-call]


@dataclass
class Plan:
    """What the passes of a step leave for `step()`."""

    decision: Decision
    losses: tuple[Tensor | None, Tensor | None] = (None, None)
    base: dict[Tensor, Tensor] = field(default_factory=dict)  # the base gradients of a sync step
    moves: dict[Tensor, Tensor] = field(default_factory=dict)  # its perturbations
    followed: dict[Tensor, Tensor] = field(default_factory=dict)  # what is followed in place of the second gradient

    def follow(self, settings: Mapping[str, Any]) -> None:
        """Make what is followed of both gradients, where it is not the second one.

        Args:
            settings: Of the optimizer.
        """
        if not self.decision.sync or settings["surrogate"] == "adversarial":
            return
        both = [p for p in self.moves if p.grad is not None]
        if both:
            raised, base = [cast(Tensor, p.grad) for p in both], [self.base[p] for p in both]
            made = SURROGATES[settings["surrogate"]](raised, base, settings["alpha"])
            self.followed = dict(zip(both, made, strict=True))
