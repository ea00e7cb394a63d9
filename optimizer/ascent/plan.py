"""What the passes of a step are to the loop that runs them, and what they leave for the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lossscope.optimizer.ascent.surrogate import SURROGATES, norm_of
from lossscope.optimizer.ascent.trigger import Decision

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
    raised_norm: Tensor | None = None  # of the second gradient as it was made, in one unit with the loss
    followed: dict[Tensor, Tensor] = field(default_factory=dict)  # what is followed in place of the second gradient

    @torch.no_grad()
    def measure(self, settings: Mapping[str, Any], scale: float) -> None:
        """Keep the size of the second gradient before anybody clips it, where the step is made of both.

        Args:
            settings: Of the optimizer.
            scale: Of the loss.
        """
        raised = self._raised()
        if raised and settings["surrogate"] != "adversarial":
            self.raised_norm = norm_of(list(raised.values())) / scale

    def follow(self, settings: Mapping[str, Any]) -> None:
        """Make what is followed of both gradients, where it is not the second one.

        Who clips the norm after the last pass shortens the second gradient alone; the first is shortened by the same
        factor here, so that the direction is that of both gradients as they were made.

        Args:
            settings: Of the optimizer.
        """
        both = self._raised()
        if self.raised_norm is None or not both:
            return
        raised = list(both.values())
        kept = torch.where(self.raised_norm > 0, norm_of(raised) / self.raised_norm, 1.0)
        made = SURROGATES[settings["surrogate"]](raised, [self.base[p] * kept for p in both], settings["alpha"])
        self.followed = dict(zip(both, made, strict=True))

    def _raised(self) -> dict[Tensor, Tensor]:
        """The second gradients, as they stand now, of tensors that ascended."""
        return {p: p.grad for p in self.moves if p.grad is not None}
