"""Counter-based random numbers of an optimizer: equal in a resumed run, and independent of the global stream."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["SeededNoise"]


@dataclass(frozen=True)
class SeededNoise:
    """One random draw, identified by its purpose, seed, step and tensor."""

    purpose: str
    seed: int  # setting of the optimizer; any integer
    step: int
    index: int  # index of the tensor

    def normal_like(self, tensor: Tensor) -> Tensor:
        """Return standard normal numbers with the shape, dtype and device of a tensor."""
        generator = torch.Generator().manual_seed(self._key)
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)

    @property
    def _key(self) -> int:
        # Hashed: generators read the low 32 bits of a key, in which sums of products of seed and step would meet.
        words = f"{self.purpose} {self.seed} {self.step} {self.index}".encode()
        return int.from_bytes(blake2b(words, digest_size=8).digest(), "big") >> 1
