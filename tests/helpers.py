"""What several test modules share: random tensors with a seed, the simplest model and function, and dense matrices."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lossscope.probes import SymmetricOperator

__all__ = ["BENCHMARKS", "Identity", "Vector", "benchmark", "dense", "draw", "gaussian", "generator"]

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def generator(seed: int = 0) -> torch.Generator:
    """Return a CPU generator with a seed."""
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers of a shape."""
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def draw(seed: int, *shape: int) -> Tensor:
    """Return `gaussian(*shape, seed=seed)`: the seed first, for calls with many draws."""
    return gaussian(*shape, seed=seed)


def dense(operator: SymmetricOperator) -> Tensor:
    """Return the matrix of an operator, `(n, n)`."""
    return operator @ torch.eye(operator.size, dtype=operator.dtype)


def benchmark(name: str) -> Iterator[ModuleType]:
    """Yield a module of the folder `benchmarks`, which is on the import path meanwhile."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


class Identity(torch.autograd.Function):
    """A function that is not known to be right, and is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope


class Vector(nn.Module):
    """A model that is its own parameter vector `theta`."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())
