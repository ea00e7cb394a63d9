"""Networks of the scale benchmark: language models of 1M to 124M parameters, and ResNet-18 on 32 x 32 images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from networks import Problem
from torch import Tensor, nn

from lossscope.landscape.training.resnet import resnet18

TOKENS = 64  # length of a sequence
_STEPS, _RATE = 20, 1e-3  # of the training that precedes a measurement


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `(batch, tokens, width)`."""
        batch, tokens, width = x.shape
        split = self.qkv(self.first(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Gpt(nn.Module):
    """A language model whose head is its embedding, as in GPT-2; it returns a row of logits for each token."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(TOKENS, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits, `(batch * tokens, vocabulary)`."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits.flatten(0, 1)


@dataclass(frozen=True)
class Language:
    """Shape of a language model and of its batch."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    sequences: int

    def problem(self, name: str) -> Problem:
        """Return the model with a batch of tokens that follow Zipf's law."""
        model = Gpt(self.layers, self.width, self.heads, self.vocabulary)
        law = 1 / torch.arange(1, self.vocabulary + 1).double()
        drawn = torch.multinomial(law, self.sequences * (TOKENS + 1), replacement=True)
        ids = drawn.view(self.sequences, TOKENS + 1)
        return Problem(name, model, (ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)), relu_only=False)


@dataclass(frozen=True)
class Images:
    """Number of images for ResNet-18."""

    images: int

    def problem(self, name: str) -> Problem:
        """Return the model in evaluation mode with a batch of random images."""
        batch = torch.randn(self.images, 3, 32, 32), torch.randint(10, (self.images,))
        return Problem(name, resnet18().eval(), batch, relu_only=False)


SHAPES: dict[str, Language | Images] = {
    "tiny": Language(1, 16, 2, 64, 2),
    "1M": Language(4, 128, 4, 1024, 8),
    "11M": Language(6, 384, 6, 1024, 4),
    "30M": Language(6, 384, 6, 50257, 1),
    "124M": Language(12, 768, 12, 50257, 1),
    "resnet18-8": Images(8),
    "resnet18": Images(256),
}


def problem(name: str) -> Problem:
    """Return the problem of a shape after a few steps of sign descent, which needs no memory of its own."""
    torch.manual_seed(0)
    found = SHAPES[name].problem(name)
    for _ in range(_STEPS):
        slopes = found.gradient()
        with torch.no_grad():
            for p, slope in zip(found.parameters, slopes, strict=True):
                p.sub_(slope.sign_(), alpha=_RATE)
    return found


def in_words(found: Problem) -> str:
    """Return size and batch of a problem in words."""
    return f"{found.size / 1e6:.3g}M, {len(found.batch[1])} {'tokens' if found.batch[0].ndim == 2 else 'images'}"
