"""Further losses, and things that a loss or a model reaches outside of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.objective.losses import CrossEntropy
from zoo.member import Parts, seeded
from zoo.vision import COUNTS, net, points, vectors

__all__ = ["LOSSES", "REACHING"]


def on(loss: Callable[[Tensor, Tensor], Tensor], *, outputs: int = 3, labels: bool = True) -> Callable[[], Parts]:
    """Return the builder of a small network with a loss of outputs and targets."""
    return seeded(
        lambda: Parts(
            net(outputs=outputs),
            lambda model, batch: loss(model(batch[0]), batch[1]),
            vectors() if labels else points(outputs=outputs),
        )
    )


def divergence(z: Tensor, y: Tensor) -> Tensor:
    """Return the divergence from smoothed labels, per row."""
    target = F.one_hot(y, 3).to(z.dtype) * 0.8 + 0.2 / 3
    return F.kl_div(z.log_softmax(-1), target, reduction="batchmean")


def focal(z: Tensor, y: Tensor) -> Tensor:
    """Return the focal loss."""
    own = F.cross_entropy(z, y, reduction="none")
    return ((1 - torch.exp(-own)) ** 2 * own).mean()


def triplet(z: Tensor, y: Tensor) -> Tensor:
    """Return the triplet loss of each row with two constant others."""
    other = torch.linspace(-1, 1, 3, dtype=z.dtype).expand_as(z)
    return F.triplet_margin_loss(z, other, -other, margin=3.0)


def binary(z: Tensor, y: Tensor) -> Tensor:
    """Return the binary cross-entropy of one logit."""
    return F.binary_cross_entropy_with_logits(z[:, 0], (y > 0).to(z.dtype), pos_weight=z.new_tensor(2.0))


def cosine(z: Tensor, t: Tensor) -> Tensor:
    """Return the mean cosine distance."""
    return (1 - F.cosine_similarity(z, t)).mean()


def evidence(z: Tensor, t: Tensor) -> Tensor:
    """Return a Gaussian negative log-likelihood whose variance is predicted too."""
    return F.gaussian_nll_loss(z[:, :1], t[:, :1], F.softplus(z[:, 1:2]) + 0.1)


def ctc() -> Parts:
    """Connectionist temporal classification, whose backward pass torch cannot differentiate."""
    batches = []
    for n in (4, 3, 2):
        batches.append((torch.randn(n, 5, 4), torch.randint(1, 3, (n, 2))))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        log = model(x).log_softmax(-1).transpose(0, 1)
        lengths = torch.full((len(x),), 5), torch.full((len(x),), 2)
        return F.ctc_loss(log, y, *lengths, reduction="sum") / len(x)

    return Parts(net(), loss, batches)


def by_functions() -> Parts:
    """A physics-informed loss written with torch.func inside."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        u = lambda x: model(x[None])[0, 0]  # noqa: E731
        second = torch.func.vmap(torch.func.grad(lambda x: torch.func.grad(u)(x)[0]))(batch)
        return (second[:, 0] + torch.sin(batch[:, 0])).square().mean()

    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
    return Parts(model, loss, [torch.rand(n, 1) for n in COUNTS])


def forces() -> Parts:
    """Energies and forces: the derivative of the output by the input stands in the loss, inside the model."""

    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 6), nn.SiLU(), nn.Linear(6, 1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                energy = self.net(x)[:, 0]
                return energy, -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        energy, force = model(batch[0])
        return (energy - batch[1]).square().mean() + (force - batch[2]).square().mean()

    return Parts(Energy(), loss, [(torch.randn(n, 3), torch.randn(n), torch.randn(n, 3)) for n in COUNTS])


def with_gradient_norm(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss plus the squared norm of its own gradient."""
    loss = F.cross_entropy(model(batch[0]), batch[1])
    slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return loss + 0.1 * torch.stack([slope.square().sum() for slope in slopes]).sum()


def after_one_step(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss on one half of the batch after a step on the other half, as meta-learning does."""
    (x, y), half = batch, len(batch[0]) // 2
    names, tensors = zip(*model.named_parameters(), strict=True)
    slopes = torch.autograd.grad(F.cross_entropy(model(x[:half]), y[:half]), tensors, create_graph=True)
    state = {name: p - 0.5 * slope for name, p, slope in zip(names, tensors, slopes, strict=True)}
    return F.cross_entropy(torch.func.functional_call(model, state, (x[half:],)), y[half:])


def by_backward(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean square of a slope that `backward` puts into the inputs."""
    x = batch[0].detach().clone().requires_grad_()
    model(x).square().sum().backward(create_graph=True, inputs=[x])
    assert x.grad is not None
    return x.grad.square().mean()


LOSSES: dict[str, Callable[[], Parts]] = {
    "kl": on(divergence),
    "focal": on(focal),
    "triplet": on(triplet),
    "binary": on(binary, outputs=1),
    "huber": on(F.huber_loss, outputs=2, labels=False),
    "cosine": on(cosine, outputs=3, labels=False),
    "gaussian_nll": on(evidence, outputs=2, labels=False),
    "ctc": seeded(ctc),
    "functional_pinn": seeded(by_functions),
    "forces": seeded(forces),
    "gradient_norm": seeded(lambda: Parts(net(), with_gradient_norm, vectors()[:1])),
    "one_step": seeded(lambda: Parts(net(), after_one_step, vectors()[:1])),
    "by_backward": seeded(lambda: Parts(net(), by_backward, vectors())),
}


def decayed(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss with an L2 term over the model's own parameters."""
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return loss + 0.05 * sum((p.square().sum() for p in model.parameters()), torch.zeros(()))


def by_state(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of an averaged copy of the model, made by functional_call."""
    state = {name: p * 0.9 for name, p in model.named_parameters()}
    return F.cross_entropy(torch.func.functional_call(model, state, (batch[0],)), batch[1])


def by_layer(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss with a term on one weight by name and one by its module."""
    return (
        F.cross_entropy(model(batch[0]), batch[1])
        + 0.1 * model[0].weight.abs().sum()
        + model.get_parameter("2.bias")[0]
    )


def captured() -> Parts:
    """A regularizer that holds the parameter itself, not the model."""
    model = net()
    weight = model[0].weight
    return Parts(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 0.3 * weight.square().sum(), vectors())


def globally() -> Parts:
    """A loss that uses the model it closes over and not its argument."""
    model = net()
    return Parts(model, lambda m, b: F.cross_entropy(model(b[0]), b[1]), vectors())


class TiedByList(nn.Module):
    """Language model whose head is its embedding, kept in a list so that it is not registered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = [self.embedding.weight]

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.embedding(ids)), self.head[0])


def tied_by_list() -> Parts:
    """Return the tied model; `double` keeps the parameter object, so the list holds it afterwards too."""
    return Parts(TiedByList(), CrossEntropy(), [(torch.randint(0, 6, (n,)), torch.randint(0, 6, (n,))) for n in COUNTS])


def teacher() -> Parts:
    """Distillation from a teacher in train mode, with batch norm and dropout off; one batch, as its statistics are."""
    other = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            target = other(batch[0]).softmax(-1)
        return F.kl_div(model(batch[0]).log_softmax(-1), target, reduction="batchmean")

    return Parts(net(), loss, [(torch.randn(12, 4),)], (other,))


REACHING: dict[str, Callable[[], Parts]] = {
    "decayed": seeded(lambda: Parts(net(), decayed, vectors())),
    "by_state": seeded(lambda: Parts(net(), by_state, vectors())),
    "by_layer": seeded(lambda: Parts(net(), by_layer, vectors())),
    "captured": seeded(captured),
    "tied_by_list": seeded(tied_by_list),
    "global_model": seeded(globally),
    "teacher": seeded(teacher),
}
