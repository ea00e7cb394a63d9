"""Random numbers that an optimizer draws: the same again in a resumed run, and none from the global stream."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["SeededNoise"]


@dataclass(frozen=True)
class SeededNoise:
    """One draw, told from all others: of one purpose, for one tensor, at one step, under one seed."""

    purpose: str
    seed: int  # the setting of the optimizer; any whole number
    step: int
    index: int  # of the tensor

    def normal_like(self, tensor: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and device of a tensor."""
        generator = torch.Generator().manual_seed(self._key)
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)

    @property
    def _key(self) -> int:
        # Hashed: generators read the low 32 bits of a key, in which sums of products of seed and step would meet.
        words = f"{self.purpose} {self.seed} {self.step} {self.index}".encode()
        return int.from_bytes(blake2b(words, digest_size=8).digest(), "big") >> 1
