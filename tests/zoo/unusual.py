"""Unusual numbers and wrappers: low precision, checkpoints, compilation, empty and 0-d parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lossscope.probes.objective.losses import CrossEntropy
from zoo.member import Parts, seeded
from zoo.vision import net, vectors

__all__ = [
    "autocast_forward",
    "autocast_loss",
    "bf16",
    "checkpointed",
    "checkpointed_reentrant",
    "compiled",
    "odd_shapes",
    "without_autocast",
]


@seeded
def bf16() -> Parts:
    """Parameters and data in bfloat16."""
    return Parts(net().bfloat16(), CrossEntropy(), [(x.bfloat16(), y) for x, y in vectors()])


def autocast(model: nn.Module, batch: Any) -> Tensor:
    """Return the cross-entropy of logits computed under autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch[0])
    return F.cross_entropy(logits.float(), batch[1])


@seeded
def autocast_loss() -> Parts:
    """Autocast inside the loss."""
    return Parts(net(), autocast, vectors())


class Autocast(nn.Module):
    """Forward pass under autocast, as trainers wrap it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x).float()


@seeded
def autocast_forward() -> Parts:
    """Autocast inside the forward pass."""
    return Parts(Autocast(net()), CrossEntropy(), vectors())


@seeded
def without_autocast() -> Parts:
    """The same network without autocast: its float64 twin."""
    return Parts(net(), CrossEntropy(), vectors())


class Checkpointed(nn.Module):
    """Network whose first half is computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(checkpoint(self.first, x, use_reentrant=self.reentrant)))


@seeded
def checkpointed() -> Parts:
    """Checkpointing as torch recommends it."""
    return Parts(Checkpointed(False), CrossEntropy(), vectors())


@seeded
def checkpointed_reentrant() -> Parts:
    """Reentrant checkpointing of inputs that require grad, as reentrant checkpointing needs."""
    return Parts(Checkpointed(True), CrossEntropy(), [(x.requires_grad_(), y) for x, y in vectors()])


@seeded
def compiled() -> Parts:
    """A compiled model; `eager` needs no C compiler and keeps second derivatives."""
    return Parts(torch.compile(net(), backend="eager"), CrossEntropy(), vectors())


class Odd(nn.Module):
    """Network with a 0-d parameter and one without entries."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.empty = net(), nn.Parameter(torch.zeros(0, 5))
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.temperature + self.empty.sum()


@seeded
def odd_shapes() -> Parts:
    """Parameters of shape () and (0, 5)."""
    return Parts(Odd(), CrossEntropy(), vectors())
