"""CIFAR-10 from its binary files, and the random crops, flips and cutouts of its trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.data_folder import data_file, first_of

__all__ = ["augmented", "cifar10"]

_TRAIN: Final = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST: Final = "test_batch.bin"
_ROW: Final = 1 + 3 * 32 * 32  # bytes: label and pixels
_CLASSES: Final = 10
_MEAN: Final = (0.4914, 0.4822, 0.4465)  # of the training images, by channel
_SPREAD: Final = (0.2470, 0.2435, 0.2616)
_SHIFT: Final = 4  # pixels of zeros around an image from which a crop is taken
_HOLE: Final = 16  # side of the square that is cut out

Examples = tuple[Tensor, Tensor]


def cifar10(folder: Path) -> tuple[Examples, Examples, dict[str, Mapping[str, Any]]]:
    """Read the images from the binary version of the data set.

    The Python version is pickled code, which is never read.

    Args:
        folder: The folder with the six files, or with `cifar-10-batches-bin`.

    Returns:
        Training and test examples, images `(N, 3, 32, 32)` standardized by channel with labels 0 to 9; and size and
        SHA-256 of each file.

    Raises:
        ConfigError: A file is missing, or is no such file.

    Source:
        A. Krizhevsky (2009), Learning multiple layers of features from tiny images; www.cs.toronto.edu/~kriz/cifar.html
        for the format.
    """
    place = first_of(
        folder,
        ("", "cifar-10-batches-bin"),
        (*_TRAIN, _TEST),
        what="CIFAR-10",
        where_from="the binary version, cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html",
    )
    files: dict[str, Mapping[str, Any]] = {}
    train = [_images(place / name, files) for name in _TRAIN]
    images, labels = (torch.cat(part) for part in zip(*train, strict=True))
    return (images, labels), _images(place / _TEST, files), files


def _images(path: Path, files: dict[str, Mapping[str, Any]]) -> Examples:
    """Return the examples of a file."""
    content = data_file(path, files)
    if len(content) % _ROW:
        raise ConfigError(f"--data: {path} has {len(content):,} bytes, need a multiple of {_ROW:,}: it is cut")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, _ROW)
    labels = torch.from_numpy(rows[:, 0].astype(np.int64))
    if int(labels.max()) >= _CLASSES:
        raise ConfigError(f"--data: {path} has the label {int(labels.max())}, need 0 to 9: it is another file")
    pixels = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32)) / 255
    mean, spread = (torch.tensor(one).view(1, 3, 1, 1) for one in (_MEAN, _SPREAD))
    return (pixels - mean) / spread, labels


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images that are shifted by up to 4 pixels, flipped and cut out by a square of 16 pixels, each at random.

    Args:
        images: `(N, 3, H, W)`.
        generator: Source of the random numbers, on the CPU.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (_SHIFT,) * 4)
    down, right = (torch.randint(2 * _SHIFT + 1, (count, 1, 1), generator=generator) for _ in range(2))
    flipped = torch.rand(count, 1, 1, generator=generator) < 0.5
    rows = down + torch.arange(height).view(1, -1, 1)
    across = torch.arange(width).view(1, 1, -1).expand(count, 1, -1)
    columns = right + torch.where(flipped, width - 1 - across, across)
    which = torch.arange(count).view(-1, 1, 1)
    moved = padded.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)
    y, x = (torch.randint(side, (count, 1, 1), generator=generator) for side in (height, width))
    inside = ((torch.arange(height).view(1, -1, 1) - y + _HOLE // 2) // _HOLE == 0) & (
        (torch.arange(width).view(1, 1, -1) - x + _HOLE // 2) // _HOLE == 0
    )
    return moved.masked_fill(inside.unsqueeze(1).to(moved.device), 0.0).contiguous()
