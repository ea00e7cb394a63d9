"""Rise of the loss under random noise on every weight, with the same draws at each size of the noise."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossscope.probes.objective.objective import Objective

__all__ = ["Noise"]

Array: TypeAlias = NDArray[np.float64]


class Noise:
    """Rise of the loss at draws of normal noise; make it inside `evaluating`.

    Args:
        objective: The loss.
        draws: Number of random z.
        seed: Seed of the draws.
        relative: True if every weight moves in units of itself.
    """

    def __init__(self, objective: Objective, draws: int, seed: int, *, relative: bool) -> None:
        self.objective, self.draws, self.seed, self.relative = objective, draws, seed, relative
        self.loss = objective.value()
        self._theta = objective.parameters()

    def rises(self, sigmas: Array) -> Array:
        """Return the rise of each draw at each noise level, `(k, draws)`; each z is drawn once."""
        generator = torch.Generator().manual_seed(self.seed)
        found = np.empty((len(sigmas), self.draws))
        for draw in range(self.draws):
            step = self._step(generator)
            for i, sigma in enumerate(sigmas):
                found[i, draw] = self.objective.value_at(torch.add(self._theta, step, alpha=float(sigma))) - self.loss
        return found

    def _step(self, generator: torch.Generator) -> Tensor:
        """Return the next z in units of each weight, drawn on the CPU so that all devices get the same."""
        z = torch.randn(self.objective.size, generator=generator, dtype=torch.float32).to(self._theta)
        return z.mul_(self._theta) if self.relative else z
