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
        return torch.randn(tensor.shape, generator=self.generator(), dtype=torch.float64).to(tensor)

    def signs_like(self, tensor: Tensor) -> Tensor:
        """Return random signs with the shape, dtype and device of a tensor."""
        bits = torch.randint(2, tensor.shape, generator=self.generator(), dtype=torch.int8)
        return bits.to(tensor).mul_(2).sub_(1)

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a generator of this draw on a device."""
        return torch.Generator(device).manual_seed(self._key)

    @property
    def _key(self) -> int:
        # Hashed: generators read the low 32 bits of a key, in which sums of products of seed and step would meet.
        words = f"{self.purpose} {self.seed} {self.step} {self.index}".encode()
        return int.from_bytes(blake2b(words, digest_size=8).digest(), "big") >> 1
