"""Networks on sequences: language models, recurrent networks, adapters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.objective.losses import CrossEntropy
from zoo.member import Parts, seeded

__all__ = ["gpt", "gpt_11m", "gru", "lora", "lstm", "sparse_embedding", "tokens"]


class Block(nn.Module):
    """Pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.qkv(self.first(x)).view(rows, length, 3, self.heads, width // self.heads)
        mixed = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Gpt(nn.Module):
    """Language model whose head is its embedding."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02 if layers > 1 else 0.3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.place.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def tokens(vocabulary: int, shapes: tuple[tuple[int, int], ...]) -> list[tuple[Tensor, Tensor]]:
    """Return batches of token sequences with the next tokens as labels."""
    drawn = [torch.randint(0, vocabulary, (rows, length + 1)) for rows, length in shapes]
    return [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in drawn]


@seeded
def gpt() -> Parts:
    """A language model with tied embedding."""
    return Parts(Gpt(6, 5, 4, 2, 1), CrossEntropy(), tokens(6, ((3, 5), (2, 3), (1, 5))))


@seeded
def gpt_11m() -> Parts:
    """A language model of 11 million parameters."""
    return Parts(Gpt(256, 32, 384, 6, 6), CrossEntropy(), tokens(256, ((2, 32), (1, 32))))


class Recurrent(nn.Module):
    """Recurrent network with a head on its last state."""

    def __init__(self, kind: type[nn.Module], width: int) -> None:
        super().__init__()
        self.core, self.head = kind(3, width, batch_first=True), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


def series() -> list[tuple[Tensor, Tensor]]:
    """Return batches of sequences with labels."""
    return [(torch.randn(n, 4, 3), torch.randint(0, 3, (n,))) for n in (6, 4, 3)]


@seeded
def lstm() -> Parts:
    """An LSTM."""
    return Parts(Recurrent(nn.LSTM, 3), CrossEntropy(), series())


@seeded
def gru() -> Parts:
    """A GRU."""
    return Parts(Recurrent(nn.GRU, 4), CrossEntropy(), series())


class Adapter(nn.Module):
    """Frozen linear layer plus a trainable product of low rank."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * 0.3)
        self.up = nn.Parameter(torch.randn(base.out_features, rank) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@seeded
def lora() -> Parts:
    """Adapters of low rank on a frozen backbone."""
    model = nn.Sequential(Adapter(nn.Linear(4, 8)), nn.Tanh(), Adapter(nn.Linear(8, 3)))
    batches = [(torch.randn(n, 4), torch.randint(0, 3, (n,))) for n in (9, 6, 4)]
    return Parts(model, CrossEntropy(), batches)


class Bag(nn.Module):
    """Mean of embeddings whose gradient is sparse, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(ids)).mean(1))


@seeded
def sparse_embedding() -> Parts:
    """An embedding with sparse gradients."""
    drawn: list[Any] = [(torch.randint(0, 9, (n, 3)), torch.randint(0, 3, (n,))) for n in (7, 5, 3)]
    return Parts(Bag(), CrossEntropy(), drawn)
