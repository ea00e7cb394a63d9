"""Text from outside (names, reasons, settings) made safe to print: it cannot change a terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return the text with control characters, which could change a terminal, as replacement characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
