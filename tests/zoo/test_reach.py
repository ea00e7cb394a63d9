"""What a model or a loss reaches outside of its parameters is left as it was, or the objective refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.errors import LossscopeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from zoo.checks import changed, kept
from zoo.member import Parts, seeded
from zoo.vision import net, vectors


class Noisy(nn.Module):
    """Network that draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.generator = net(), torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.1 * torch.randn(x.shape, generator=self.generator))


class Lazy(nn.Module):
    """Network with a buffer that the first forward pass fills, and a cache by length."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.masks, self.seen = net(), {}, []
        self.register_buffer("last", None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x) * self.masks.setdefault(len(x), torch.ones(len(x), 1, dtype=x.dtype))
        self.last = out.detach()
        self.seen.append(len(x))
        return out


class Averaging:
    """Loss that keeps a running mean in an attribute of its own and its own batch norm."""

    def __init__(self) -> None:
        self.mean, self.norm, self.calls = torch.zeros(3), nn.BatchNorm1d(3), []

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        z = model(batch[0])
        self.mean.mul_(0.9).add_(0.1 * z.detach().mean(0))
        self.calls.append(len(z))
        return F.cross_entropy(self.norm(z), batch[1])


def counting(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of inputs that are scaled in place."""
    return F.cross_entropy(model(batch[0].mul_(0.5)), batch[1])


def annotating(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of a dictionary that gets another entry."""
    batch["logits"] = model(batch["x"])
    return F.cross_entropy(batch["logits"], batch["y"])


def traced() -> nn.Module:
    """Return a traced module, whose training flags are not Python's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(net(), torch.randn(2, 4))


def averaged() -> Parts:
    """Return a loss object with state."""
    loss = Averaging()
    return Parts(net(), loss, vectors(), (loss.norm,))


def named() -> list[dict[str, Tensor]]:
    """Return batches that are dictionaries."""
    return [{"x": x, "y": y} for x, y in vectors()]


CASES: dict[str, Callable[[], Parts]] = {
    "generator": lambda: Parts(Noisy(), CrossEntropy(), vectors()),
    "lazy buffer and caches": lambda: Parts(Lazy(), CrossEntropy(), vectors()),
    "loss with state": averaged,
    "batch changed in place": lambda: Parts(net(), counting, vectors()),
    "batch with a new entry": lambda: Parts(net(), annotating, named()),
    "traced": lambda: Parts(traced(), CrossEntropy(), vectors()),
}


def of_loss(parts: Parts) -> list[Tensor]:
    """Return the tensors that a loss object holds itself."""
    return [value.clone() for value in vars(parts.loss_fn).values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("name", CASES)
def test_what_is_reached_is_left(name: str) -> None:
    parts = seeded(CASES[name])()
    before, state = kept(parts), of_loss(parts)
    keys = [len(batch) for batch in parts.batches]
    with suppress(LossscopeError):
        objective = Objective(parts.model, parts.loss_fn, parts.batches)
        objective.value()
        _ = hessian(objective) @ torch.ones(objective.size)
    assert not changed(before, kept(parts))
    assert all(torch.equal(a, b) for a, b in zip(state, of_loss(parts), strict=True))
    assert keys == [len(batch) for batch in parts.batches]
