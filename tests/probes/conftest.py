"""Small networks in float64 on which every product is compared with an independent one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective


class Tied(nn.Module):
    """One matrix in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Attention(nn.Module):
    """Logits (rows, tokens, classes): each row of four numbers is read as two tokens of two."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.head = nn.Linear(2, 12), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(len(x), 2, 2)).chunk(3, -1)
        heads = [part.reshape(len(x), 2, 2, 2).transpose(1, 2) for part in (q, k, v)]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(len(x), 2, 4)
        return self.head(self.norm(mixed))


class Named(nn.Module):
    """A network that reads its input from a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["x"])


class PlainNorm(nn.Module):
    """A norm layer by the statistics of its input, as elementary operations.

    Forward mode over `jacrev` goes wrong without a word through torch's own layer norm and batch norm (by 4 and 9 %
    of a product here; `torch.func.hessian` and curvlinops are built on it), and group norm has no such rule.
    """

    def __init__(self, norm: nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.kind = norm.weight, norm.bias, norm.eps, type(norm)
        self.groups = getattr(norm, "num_groups", 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind is nn.GroupNorm:
            shape = (1, -1, *[1] * (x.ndim - 2))
            scaled = self.standard(x.reshape(len(x), self.groups, -1), -1).reshape(x.shape)
            return scaled * self.weight.reshape(shape) + self.bias.reshape(shape)
        return self.standard(x, 0 if self.kind is nn.BatchNorm1d else -1) * self.weight + self.bias

    def standard(self, x: Tensor, axis: int) -> Tensor:
        centered = x - x.mean(axis, keepdim=True)
        return centered / (centered.square().mean(axis, keepdim=True) + self.eps).sqrt()


class NamedCrossEntropy(CrossEntropy):
    """Cross-entropy of batches that are dictionaries through and through."""

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch)

    def labels(self, batch: Any) -> Tensor:
        return batch["y"]


def partly_frozen() -> nn.Module:
    net = mlp()
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def images() -> nn.Module:
    parts = (nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten())
    return nn.Sequential(*parts, nn.Linear(36, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "dictionary": Named,
    "tied": Tied,
    "frozen parameters": partly_frozen,
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 3)),
    "conv and group norm": images,
    "attention": Attention,
}


@dataclass
class Case:
    """A network, its inputs and its labels, as ours and as others want them."""

    net: nn.Module
    pairs: list[tuple[Any, Tensor]]
    loss: Any = field(default_factory=CrossEntropy)

    def objective(self, mode: Any = "eval") -> Objective:
        batches: list[Any] = list(self.pairs)
        if isinstance(self.loss, NamedCrossEntropy):
            batches = [{**x, "y": y} for x, y in self.pairs]
        return Objective(self.net, self.loss, batches, mode=mode)

    def plain(self, *, training: bool = False) -> nn.Module:
        """Return a copy in its mode with elementary norm layers, for libraries that set no modes."""
        net = copy.deepcopy(self.net).train(training)
        for path, module in list(net.named_modules()):
            if isinstance(module, nn.LayerNorm | nn.GroupNorm) or (isinstance(module, nn.BatchNorm1d) and training):
                net.set_submodule(path, PlainNorm(module))
        return net


def make_case(name: str, counts: tuple[int, ...] = (7, 4, 2), *, loss: Any = None) -> Case:
    """One of the networks with uneven batches; a loss of ours other than cross-entropy gets real targets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = NETS[name]().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean, module.running_var = gaussian(4), gaussian(4, seed=1).square() + 0.5
    inputs: list[Any] = [gaussian(n, 4, seed=n) for n in counts]
    if loss is not None:
        return Case(net, [(x, gaussian(len(x), 3, seed=50 + len(x))) for x in inputs], loss)
    labels = [torch.arange(n) % 3 for n in counts]
    if name == "attention":
        labels = [torch.stack([y, (y + 1) % 3], 1) for y in labels]
    if name == "dictionary":
        return Case(net, [({"x": x}, y) for x, y in zip(inputs, labels, strict=True)], NamedCrossEntropy())
    return Case(net, list(zip(inputs, labels, strict=True)))


@pytest.fixture(name="make_case")
def case_maker() -> Callable[..., Case]:
    """Builds a case by the name of its network."""
    return make_case
