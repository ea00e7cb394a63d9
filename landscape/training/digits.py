"""Handwritten digits: 1797 scans of 8 by 8 pixels, which scikit-learn carries with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["digits", "digits_conv", "digits_mlp"]


def digits(*, flat: bool) -> tuple[Tensor, Tensor]:
    """Scans in [0, 1] as `(1797, 64)` or `(1797, 1, 8, 8)`, and their labels 0 to 9.

    Source:
        Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository (1998).
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = torch.tensor(scans.data, dtype=torch.float32) / 16
    return (pixels if flat else pixels.reshape(-1, 1, 8, 8)), torch.tensor(scans.target)


def digits_mlp() -> nn.Module:
    """64-64-32-10 with ReLU: 6570 parameters, without norm layers, so it has the rescaling symmetry."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits_conv() -> nn.Module:
    """Two 3 by 3 convolutions with group norm and a linear head: 10 042 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
