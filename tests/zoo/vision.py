"""Networks on images, and plain ones on vectors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError
from zoo.member import Parts, seeded

__all__ = [
    "COUNTS",
    "mlp",
    "mlp_double",
    "net",
    "points",
    "regression",
    "resnet",
    "segmentation",
    "vectors",
    "weight_norm",
    "weight_norm_legacy",
]

COUNTS = (9, 6, 4)  # samples of the batches, unequal on purpose


def vectors(columns: int = 4, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Return batches of vectors with labels."""
    return [(torch.randn(n, columns), torch.randint(0, classes, (n,))) for n in COUNTS]


def points(columns: int = 4, outputs: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Return batches of vectors with targets."""
    return [(torch.randn(n, columns), torch.randn(n, outputs)) for n in COUNTS]


def net(width: int = 6, outputs: int = 3) -> nn.Sequential:
    """Return a small network of two layers."""
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, outputs))


@seeded
def mlp() -> Parts:
    """A small network in float32."""
    return Parts(net(), CrossEntropy(), vectors())


@seeded
def mlp_double() -> Parts:
    """A small network in float64."""
    return Parts(net().double(), CrossEntropy(), [(x.double(), y) for x, y in vectors()])


@seeded
def regression() -> Parts:
    """A small network with squared errors."""
    return Parts(net(outputs=2), MeanSquaredError(), points())


class Residual(nn.Module):
    """Residual block of two convolutions with batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.last = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.last(self.two(F.relu(self.norm(self.one(x))))))


@seeded
def resnet() -> Parts:
    """A residual network with batch norm whose running statistics are those of its data."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        Residual(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    batches = [(torch.randn(n, 1, 4, 4), torch.randint(0, 3, (n,))) for n in COUNTS]
    with torch.no_grad():
        for _ in range(20):
            for x, _y in batches:
                model(x)
    return Parts(model, CrossEntropy(), batches)


IGNORED = 255


def by_pixel(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy over the labelled pixels, classes on the second axis."""
    return F.cross_entropy(model(batch[0]), batch[1], ignore_index=IGNORED)


@seeded
def segmentation() -> Parts:
    """A convolutional head with one label per pixel, as many classes as columns, some pixels unlabelled."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 5, 1))
    batches = []
    for n in (3, 2, 1):
        labels = torch.randint(0, 5, (n, 4, 5))
        labels[:, : torch.randint(1, 3, ())] = IGNORED
        batches.append((torch.randn(n, 1, 4, 5), labels))
    return Parts(model, by_pixel, batches)


@seeded
def weight_norm() -> Parts:
    """Weight norm as a parametrization."""
    model = net()
    for layer in (model[0], model[2]):
        nn.utils.parametrizations.weight_norm(layer)
    return Parts(model, CrossEntropy(), vectors())


@seeded
def weight_norm_legacy() -> Parts:
    """Weight norm by a hook before the forward pass."""
    import warnings

    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for layer in (model[0], model[2]):
            nn.utils.weight_norm(layer)
    return Parts(model, CrossEntropy(), vectors())
