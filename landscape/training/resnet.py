"""ResNet-18 for images of 32 by 32 pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResidualBlock", "resnet18"]


class ResidualBlock(nn.Module):
    """A basic block: two 3 by 3 convolutions with batch norm beside a shortcut.

    Args:
        channels: Channels of the input.
        wider: Channels of the output.
        stride: Stride of the first convolution.

    Source:
        K. He et al. (2016), arXiv:1512.03385.
    """

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(wider), nn.BatchNorm2d(wider)])
        plain = stride == 1 and channels == wider
        shortcut = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))
        self.shortcut = nn.Identity() if plain else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.shortcut(x) + self.norms[1](self.second(inner)))


def resnet18(classes: int = 10, width: int = 64) -> nn.Module:
    """Return ResNet-18 with a 3 by 3 stem and no pooling before its blocks: 11.2 million parameters.

    Args:
        classes: Number of logits.
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many.
    """
    parts: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for wider, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        parts += [ResidualBlock(channels, wider, stride), ResidualBlock(wider, wider, 1)]
        channels = wider
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
