"""English prose: characters of the documentation inside Python, and the network that predicts the next one."""

from __future__ import annotations

from itertools import islice
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError

__all__ = ["ALPHABET", "NextCharacter", "next_characters", "prose"]

ALPHABET: Final = " abcdefghijklmnopqrstuvwxyz.,'-:"  # 32 characters; every other one counts as the first
_CONTEXT: Final = 12
_SHORTEST: Final = 120  # characters of a paragraph; shorter ones are headings and fragments
_MARKUP: Final = (" ", "*", "+", "|", "-", ".", ">")  # lists, tables and code begin with these


def prose() -> str:
    """Return the paragraphs of prose in `pydoc_data.topics`, once each: lower-case text over `ALPHABET`.

    The text is that of the running Python; another version of Python has other words, and so another data hash.
    """
    from pydoc_data.topics import topics

    blocks = (block for name in sorted(topics) for block in topics[name].split("\n\n"))
    kept = (block for block in blocks if len(block) >= _SHORTEST and "::" not in block and block[0] not in _MARKUP)
    text = " ".join(dict.fromkeys(kept)).lower()
    return " ".join("".join(one if one in ALPHABET else " " for one in text).split())


def next_characters(count: int) -> tuple[Tensor, Tensor]:
    """Return windows of 12 characters as codes `(count, 12)`, and the codes of the characters that follow, `(count,)`.

    Windows and labels are disjoint pieces of the text, so no character of the test set is seen in training.

    Raises:
        ConfigError: The text has fewer windows.
    """
    text = prose()
    length = _CONTEXT + 1
    if len(text) < count * length:
        raise ConfigError(
            f"the prose of this Python has {len(text)} characters, {count * length} are needed: use another workload"
        )
    codes = torch.tensor([ALPHABET.index(one) for one in islice(text, count * length)]).view(count, length)
    return codes[:, :_CONTEXT].contiguous(), codes[:, _CONTEXT].contiguous()


class NextCharacter(nn.Module):
    """Predict a character from the 12 before it, with a 384-64-32-32 ReLU network: 27 776 parameters.

    The characters enter as one-hot vectors, which have no weights, so that the rescaling symmetry of the network is
    that of its two hidden layers.
    """

    def __init__(self) -> None:
        super().__init__()
        size = len(ALPHABET)
        self.layers = nn.Sequential(
            nn.Linear(_CONTEXT * size, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, size)
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits `(n, 32)` for codes `(n, 12)`."""
        hot = F.one_hot(codes, len(ALPHABET)).flatten(1).to(next(self.parameters()).dtype)
        logits: Tensor = self.layers(hot)
        return logits
