"""Losses of people's own: derivatives inside, second networks, weights, pairs, graphs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.member import Parts, seeded
from zoo.vision import net, vectors

__all__ = ["class_weighted", "class_weights", "gan", "gradient_penalty", "graphs", "pinn", "simclr"]


def residual(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the mean squared residual of u'' + u = sin 3x, whose derivatives are taken inside."""
    x = batch.clone().requires_grad_()
    u = model(x)
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    curvature = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
    return (curvature + u - torch.sin(3 * x)).square().mean()


@seeded
def pinn() -> Parts:
    """A physics-informed network."""
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    return Parts(model, residual, [torch.rand(n, 1) * 2 for n in (8, 6, 4)])


def critic_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of a Wasserstein critic with a gradient penalty."""
    real, fake = batch
    between = (0.4 * real + 0.6 * fake).requires_grad_()
    slope = torch.autograd.grad(model(between).sum(), between, create_graph=True)[0]
    penalty = ((slope.square().sum(1) + 1e-6).sqrt() - 1).square().mean()
    return (model(fake) - model(real)).mean() + 2 * penalty


@seeded
def gradient_penalty() -> Parts:
    """A critic with layer norm and a gradient penalty: torch's third derivative of layer norm is wrong."""
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return Parts(model, critic_loss, [(torch.randn(n, 3), torch.randn(n, 3) + 0.5) for n in (8, 6, 4)])


class Generator:
    """Loss of a generator: what the critic says of its samples.

    The critic is a second network with batch norm that the loss calls in train mode.
    """

    def __init__(self, critic: nn.Module) -> None:
        self.critic = critic

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        return F.softplus(-self.critic(model(batch))).mean()


@seeded
def gan() -> Parts:
    """A generator whose loss calls a critic with batch norm in train mode; one batch, as its statistics are of it."""
    critic = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.2), nn.Linear(6, 1))
    return Parts(net(outputs=3), Generator(critic), [torch.randn(12, 4)], (critic,))


def class_weights(like: Tensor) -> Tensor:
    """Return the weights of the three classes."""
    return torch.tensor([0.2, 1.0, 3.0], dtype=like.dtype)


def weighted(model: nn.Module, batch: Any) -> Tensor:
    """Return the cross-entropy with class weights, which torch divides by the weights of the batch."""
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1], weight=class_weights(logits))


@seeded
def class_weighted() -> Parts:
    """Class weights in unequal batches."""
    return Parts(net(), weighted, vectors())


def contrastive(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the NT-Xent loss of two views: each sample is compared with all others of its batch."""
    z = F.normalize(torch.cat([model(view) for view in batch]), dim=1)
    likeness = (z @ z.T) / 0.5
    likeness = likeness.masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
    half = len(z) // 2
    return F.cross_entropy(likeness, torch.arange(len(z)).roll(half))


@seeded
def simclr() -> Parts:
    """A contrastive loss, which is no mean over its batches."""
    views = [torch.randn(n, 4) for n in (6, 5, 4)]
    return Parts(net(), contrastive, [(x, x + 0.1 * torch.randn_like(x)) for x in views])


class GraphNet(nn.Module):
    """Two rounds of message passing and a mean over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x, (source, target) = batch["x"], batch["edges"]
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.second(x + torch.zeros_like(x).index_add(0, target, x[source])))
        count = len(batch["y"])
        total = x.new_zeros(count, x.shape[1]).index_add(0, batch["graph"], x)
        return self.head(total / torch.bincount(batch["graph"], minlength=count)[:, None])


def of_graphs(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy over the graphs."""
    return F.cross_entropy(model(batch), batch["y"])


@seeded
def graphs() -> Parts:
    """Batches of graphs, nodes first: the first axis counts nodes and the loss is a mean over graphs."""
    batches = []
    for sizes in ((3, 5, 2), (4,), (2, 2, 3, 3)):
        nodes = sum(sizes)
        graph = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        ring = torch.arange(nodes)
        edges = torch.stack([ring, ring.roll(1)])
        edges = edges[:, graph[edges[0]] == graph[edges[1]]]
        y = torch.randint(0, 3, (len(sizes),))
        batches.append({"x": torch.randn(nodes, 3), "edges": edges, "graph": graph, "y": y})
    return Parts(GraphNet(), of_graphs, batches)
