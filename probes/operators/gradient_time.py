"""The time of one gradient once torch is warm: the unit that the cost of a measurement is counted in."""

from __future__ import annotations

import math
from collections.abc import Hashable

from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.product_choice import signature
from lossscope.probes.operators.timing import now

__all__ = ["GradientTime"]

_LEAST: dict[Hashable, float] = {}  # seconds of one gradient under the same circumstances, in this process


class GradientTime:
    """The least time that one gradient of an objective was seen to take.

    The first gradient of a process is slow: torch loads what it needs, and the allocator has no memory yet. What is
    counted in it would look cheap. So one more is taken, once in a process for each `signature`.

    Args:
        objective: The loss.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._seen: dict[int, float] = {}  # least seconds, by batch
        self._circumstances: Hashable = None

    def see(self, batch: int, seconds: float) -> None:
        """Take note of the gradient of one batch."""
        self._seen[batch] = min(seconds, self._seen.get(batch, math.inf))

    @property
    def seconds(self) -> float:
        """The time of one gradient over all batches, from the share of them that was seen; nan if none was."""
        weights = self._objective.data.weights
        share = math.fsum(weights[batch] for batch in self._seen)
        seen = math.fsum(self._seen.values()) / share if share else math.nan
        return min(seen, _LEAST.get(self._circumstances, math.inf))

    def warm(self) -> None:
        """Take one more gradient if one was seen here, and none under these circumstances was taken warm before.

        Call it inside `evaluating`.
        """
        if not self._seen:
            return
        if self._circumstances is None:
            self._circumstances = signature("gradient", self._objective)
        seen = self.seconds
        _LEAST[self._circumstances] = seen if self._circumstances in _LEAST else min(seen, self._one_more())

    def _one_more(self) -> float:
        """The seconds that a gradient over all batches takes now."""
        self._objective.require_repeatable()  # which takes its time at the first use
        device = self._objective.device
        begun = now(device)
        for _ in self._objective.gradients():
            pass
        return now(device) - begun
