"""Modular addition: the data set and the one-layer transformer that groks on it."""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.gauge.attention import head_symmetries
from lossscope.probes.gauge.symmetry import Mixing, Scaling, Shift, Slot, Symmetry

__all__ = ["ModularTransformer", "modular_addition"]

_WITHOUT_EFFECT: Final = (
    "W_Q: only what it makes of the one vector of the equals sign has an effect",
    "W_out: what W_U does not read of it has no effect",
)


def modular_addition(prime: int) -> tuple[Tensor, Tensor]:
    """Return all pairs as tokens `(x, y, prime)` of shape `(prime^2, 3)`, and the labels `(x + y) mod prime`."""
    x, y = torch.meshgrid(torch.arange(prime), torch.arange(prime), indexing="ij")
    tokens = torch.stack([x.flatten(), y.flatten(), torch.full((prime * prime,), prime)], dim=1)
    return tokens, (tokens[:, 0] + tokens[:, 1]) % prime


class ModularTransformer(nn.Module):
    """One-layer transformer: causal attention and a ReLU layer, without normalization and dropout.

    The vocabulary is the residues and an equals sign. With the default sizes and prime 113 it has 226 816 parameters.

    Args:
        prime: The modulus.
        width: Width of the residual stream.
        heads: Number of attention heads; their width is `width // heads`.
        hidden: Width of the ReLU layer.

    Source:
        Nanda et al., "Progress measures for grokking via mechanistic interpretability" (2023), setup.
    """

    def __init__(self, prime: int, width: int = 128, heads: int = 4, hidden: int = 512) -> None:
        super().__init__()
        head, vocabulary = width // heads, prime + 1

        def scaled(*shape: int, by: int) -> nn.Parameter:
            """Return a normal parameter with standard deviation 1 / sqrt(by)."""
            return nn.Parameter(torch.randn(*shape) / math.sqrt(by))

        self.W_E = scaled(width, vocabulary, by=width)
        self.W_pos = scaled(3, width, by=width)
        self.W_K = scaled(heads, head, width, by=width)
        self.W_Q = scaled(heads, head, width, by=width)
        self.W_V = scaled(heads, head, width, by=width)
        self.W_O = scaled(width, heads * head, by=width)
        self.W_in = scaled(hidden, width, by=width)
        self.b_in = nn.Parameter(torch.zeros(hidden))
        self.W_out = scaled(width, hidden, by=width)
        self.b_out = nn.Parameter(torch.zeros(width))
        self.W_U = scaled(width, vocabulary, by=vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits `(batch, prime + 1)` of the last position for tokens `(batch, 3)`.

        With one layer only the last position needs queries and the ReLU layer. It attends to all three positions, so
        this is the causal network at a third of its cost.
        """
        x = self.W_E.mT[tokens] + self.W_pos
        last = x[:, -1]
        last = last + self._attention(x, last)
        last = last + F.linear(F.relu(F.linear(last, self.W_in, self.b_in)), self.W_out, self.b_out)
        return last @ self.W_U

    def weight_symmetries(self) -> list[Symmetry | str]:
        """Return what may change between the weights of the same function, for the balanced point, and what is open.

        The residual stream is linear, so its basis is free. The token of the equals sign is always last, and no other
        token is there, so that embedding and position may exchange a constant in each of the two cases.
        """
        heads, head, width = self.W_K.shape
        vocabulary, hidden, every = self.W_E.shape[1], len(self.W_in), slice(None)
        numbers, last = slice(0, vocabulary - 1), slice(vocabulary - 1, vocabulary)
        stream = Mixing(
            "the residual stream",
            width,
            (
                *(Slot("W_E", (width, vocabulary), (0, 1)), Slot("W_pos", (3, width), (1, 0))),
                *(Slot("W_O", (width, heads * head), (0, 1)), Slot("W_out", (width, hidden), (0, 1))),
                Slot("b_out", (width,), (0,)),
            ),
            (
                *(Slot(name, (heads, head, width), (2, 0, 1)) for name in ("W_Q", "W_K", "W_V")),
                *(Slot("W_in", (hidden, width), (1, 0)), Slot("W_U", (width, vocabulary), (0, 1))),
            ),
        )
        neurons = Scaling(
            "W_in",
            hidden,
            (Slot("W_in", (hidden, width), (0, 1)), Slot("b_in", (hidden,), (0,))),
            (Slot("W_out", (width, hidden), (1, 0)),),
        )
        found: list[Symmetry | str] = [stream, neurons, *_WITHOUT_EFFECT]
        for tokens, positions in ((numbers, slice(0, 2)), (last, slice(2, 3))):
            embedding = Slot("W_E", (width, vocabulary), (0, 1), pick=(every, tokens))
            found.append(Shift("W_E and W_pos", (embedding, Slot("W_pos", (3, width), (1, 0), pick=(positions,)))))
        for index in range(heads):
            query, key, value = (
                [Slot(name, (heads, head, width), (0, 1), pick=(index,))] for name in ("W_Q", "W_K", "W_V")
            )
            columns = [Slot("W_O", (width, heads, head), (1, 0), pick=(every, index))]
            found += head_symmetries(f"head {index}", head, query, key, value, columns)
        return found

    def _attention(self, x: Tensor, last: Tensor) -> Tensor:
        """Return the attention output at the last position."""
        heads, head, _ = self.W_K.shape
        keys = F.linear(x, self.W_K.flatten(0, 1)).view(-1, 3, heads, head)
        values = F.linear(x, self.W_V.flatten(0, 1)).view(-1, 3, heads, head)
        query = F.linear(last, self.W_Q.flatten(0, 1)).view(-1, 1, heads, head)
        scores = (keys * query).sum(-1, keepdim=True) / math.sqrt(head)
        mixed = (scores.softmax(1) * values).sum(1)
        return F.linear(mixed.flatten(1), self.W_O)
