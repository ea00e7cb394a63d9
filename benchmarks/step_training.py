"""Training steps on modadd-113 with any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.training import resolved
from lossscope.landscape.training.workloads import Examples, batch_at, built, workload
from lossscope.optimizer import ENTRIES, TwoPassOptimizer, create

REQUIRED = {"nu": 0.0}  # values of settings without a default; at nu = 0 CLion always takes sign steps
Make = Callable[[nn.Module], torch.optim.Optimizer]


def optimizer_of(name: str, model: nn.Module, **options: object) -> torch.optim.Optimizer:
    """Return the registered optimizer with the default settings of the workload modadd-113."""
    needed = {setting: REQUIRED[setting] for setting in ENTRIES[name].required}
    asked = {"workload": "modadd-113", "optimizer": name, "options": {**needed, **options}}
    return create(name, model, **resolved(TrainConfig.of(asked)).options)


@dataclass
class Training:
    """A model with its optimizer and the batches of its steps, used in turn."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Sequence[Examples]
    steps: int = 0
    passes: int = 0

    @classmethod
    def of(cls, name: str, **options: object) -> Training:
        """Return a training with a registered optimizer."""
        return cls.by(lambda model: optimizer_of(name, model, **options))

    @classmethod
    def by(cls, make: Make) -> Training:
        """Return a training with any optimizer."""
        work = workload("modadd-113")
        train = work.split(0).train
        model = built(work.network, 0)
        return cls(model, make(model), [batch_at(train, work.batch_size, step, 0) for step in range(7)])

    def step(self) -> Tensor:
        """Take one step with its forward and backward passes on the next batch, and return the loss."""
        x, y = self.batches[self.steps % len(self.batches)]
        self.steps += 1
        if isinstance(self.optimizer, TwoPassOptimizer):
            for p in self.optimizer.passes(self.model):
                self.passes += 1
                logits = self.model(x)
                p.backward(F.cross_entropy(logits, p.labels(logits, y)))
            return self.optimizer.step()

        def closure() -> Tensor:
            self.passes += 1
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            return loss

        return self.optimizer.step(closure)
