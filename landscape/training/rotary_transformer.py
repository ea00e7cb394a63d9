"""Language model with rotary positions, normalized queries and keys and gated layers, as Qwen3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RotaryTransformer"]

_BASE = 10_000.0  # of the wavelengths of positions
_INIT = 0.02  # standard deviation of weights
_EPS = 1e-6


class RotaryTransformer(nn.Module):
    """A decoder whose head is its embedding.

    The founding experiments have width 512, 3 blocks, 4 heads of 128 and gated layers of 2048.

    Args:
        vocabulary: Number of tokens.
        width: Width of the residual stream.
        blocks: Number of blocks.
        heads: Heads of attention, each with its own keys.
        head_width: Width of a head.
        gated_width: Width of the gated layers.

    Source:
        Qwen3 technical report, arXiv:2505.09388; tests/integrations compares it with the one of transformers.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 512,
        blocks: int = 3,
        heads: int = 4,
        head_width: int = 128,
        gated_width: int = 2048,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, heads, head_width, gated_width) for _ in range(blocks))
        self.norm = nn.RMSNorm(width, eps=_EPS)
        self.head_width = head_width
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=_INIT)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits `(batch, tokens, vocabulary)` for codes `(batch, tokens)`."""
        x = self.tokens(ids)
        turns = _turns(ids.shape[1], self.head_width, x)
        for block in self.blocks:
            x = block(x, turns)
        return F.linear(self.norm(x), self.tokens.weight)


class _Block(nn.Module):
    """Attention and gated layers, each behind a norm and beside the residual stream."""

    def __init__(self, width: int, heads: int, head_width: int, gated_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.first, self.second = nn.RMSNorm(width, eps=_EPS), nn.RMSNorm(width, eps=_EPS)
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.q_norm, self.k_norm = nn.RMSNorm(head_width, eps=_EPS), nn.RMSNorm(head_width, eps=_EPS)
        self.mix = nn.Linear(inner, width, bias=False)
        self.gate, self.up = nn.Linear(width, gated_width, bias=False), nn.Linear(width, gated_width, bias=False)
        self.down = nn.Linear(gated_width, width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Return the block's output, `(batch, tokens, width)`."""
        batch, tokens, _ = x.shape
        y = self.first(x)
        q, k, v = (part(y).view(batch, tokens, self.heads, -1) for part in (self.q, self.k, self.v))
        q, k = (_turned(part.transpose(1, 2), turns) for part in (self.q_norm(q), self.k_norm(k)))
        mixed = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        y = self.second(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


def _turns(tokens: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the angle of each position and pair of coordinates, `(tokens, width)`."""
    rates = _BASE ** (-torch.arange(0, width, 2, device=like.device) / width)
    angles = torch.arange(tokens, device=like.device)[:, None] * torch.cat([rates, rates])
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Return vectors with each pair of coordinates (i, i + half) turned by the angle of its position."""
    low, high = x.chunk(2, dim=-1)
    return x * turns[0] + torch.cat([-high, low], dim=-1) * turns[1]
