"""One step of a rule with passes of its own: what the passes read, and what they leave for the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lossscope.optimizer.ascent.seeded_noise import SeededNoise
from lossscope.optimizer.ascent.two_pass import RandomState, untouched_buffers
from lossscope.optimizer.errors import OptimizerError

__all__ = ["EstimatedStep", "refuse_several_processes"]


@dataclass
class EstimatedStep:
    """A step of a rule with passes of its own.

    Attributes:
        rule: Name of the rule, for messages.
        settings: Settings of the first group.
        parameters: All parameters, in order.
        stepped: Names of those that the rule itself steps, not AdamW.
        fresh: Returns True for a parameter that was never stepped.
        clock: Number of steps so far.
        model: The module whose buffers a repeated pass must not change, if it was given.
        zero_grad: Zeroes the gradients.
        loss: Loss of the step, once it is known.
        estimates: What the passes measured, for `ParameterStep.estimate`.
        extra: Number of passes beside the first one.
    """

    rule: str
    settings: Mapping[str, Any]
    parameters: Sequence[Tensor]
    stepped: Mapping[Tensor, str]
    fresh: Callable[[Tensor], bool]
    clock: int
    model: nn.Module | None
    zero_grad: Callable[[], None]
    loss: Tensor | None = None
    estimates: dict[Tensor, Mapping[str, Tensor]] = field(default_factory=dict)
    extra: int = 0

    def noise(self, purpose: str, index: int) -> SeededNoise:
        """Return a random draw of this step."""
        return SeededNoise(purpose, self.settings["seed"], self.clock, index)

    @property
    def due(self) -> bool:
        """True at steps 1, period + 1, ..., and where a parameter has its first gradient."""
        period = int(self.settings["period"])
        return self.clock % period == 0 or any(p.grad is not None and self.fresh(p) for p in self.stepped)

    @contextmanager
    def repeated(self, start: RandomState) -> Iterator[None]:
        """Run a pass again with the random numbers of the first one; buffers and generators stay as that one left them.

        Args:
            start: State of the generators before the first pass.
        """
        self.zero_grad()
        self.extra += 1
        afterwards = RandomState(self.parameters)
        try:
            with untouched_buffers(self.model):
                start.restore()
                yield
        finally:
            afterwards.restore()


def refuse_several_processes(rule: str) -> None:
    """Raise an `OptimizerError` inside a group of several processes, whose estimates would differ."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
        if count > 1:
            raise OptimizerError(
                f"{rule} works in one process, and this is one of {count}: each would take a step of its own; train "
                "with one, or use an optimizer of gradients alone"
            )
