"""WikiText-2 from its files of tokens: the vocabulary of the training text, and windows of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.data_folder import data_file, first_of

__all__ = ["CONTEXT", "wikitext2"]

CONTEXT: Final = 255
_TRAIN, _TEST = "wiki.train.tokens", "wiki.valid.tokens"
_END, _UNKNOWN = "<eos>", "<unk>"

Examples = tuple[Tensor, Tensor]


def wikitext2(folder: Path) -> tuple[Examples, Examples, int, dict[str, Mapping[str, Any]]]:
    """Read windows of 256 words: 255 are the input, and the 255 after the first are predicted.

    Every word of the training text is a token, and every line ends with one, as is usual for this data set (2,088,628
    training tokens, 33,278 of them different). Windows are disjoint pieces of the text, without padding.

    Args:
        folder: The folder with the files of tokens, or with `wikitext-2`. The validation text is the test data.

    Returns:
        Training and test examples, codes `(N, 255)` with the codes of the next words `(N, 255)`; the size of the
        vocabulary; and size and SHA-256 of each file.

    Raises:
        ConfigError: A file is missing, is no text, or is too short.

    Source:
        S. Merity et al. (2016), Pointer sentinel mixture models, arXiv:1609.07843.
    """
    place = first_of(
        folder,
        ("", "wikitext-2"),
        (_TRAIN, _TEST),
        what="WikiText-2",
        where_from="the archive wikitext-2-v1.zip, whose words are separated by spaces",
    )
    files: dict[str, Mapping[str, Any]] = {}
    train, test = (_words(place / name, files) for name in (_TRAIN, _TEST))
    counts = Counter(train)
    codes = {word: code for code, word in enumerate(sorted(counts, key=lambda word: (-counts[word], word)))}
    if _UNKNOWN not in codes:
        codes[_UNKNOWN] = len(codes)
    return _windows(train, codes, place), _windows(test, codes, place), len(codes), files


def _words(path: Path, files: dict[str, Mapping[str, Any]]) -> list[str]:
    """Return the words of a file, each line ended by its own token."""
    try:
        text = data_file(path, files).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--data: {path} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    return [word for line in text.splitlines() for word in (*line.split(), _END)]


def _windows(words: list[str], codes: Mapping[str, int], place: Path) -> Examples:
    """Return the windows of a text as codes, and the codes that follow."""
    length = CONTEXT + 1
    count = len(words) // length
    if count < 1:
        raise ConfigError(f"--data: a text in {place} has {len(words)} words, need at least {length}")
    unknown = codes[_UNKNOWN]
    found = torch.tensor([codes.get(word, unknown) for word in words[: count * length]]).view(count, length)
    return found[:, :-1].contiguous(), found[:, 1:].contiguous()
