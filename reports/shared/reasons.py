"""Reasons in plain words: what an exception is called in a program is no word for a reader."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["in_plain_words"]

_NAMED: Final = re.compile(
    r"(?:^|(?<=: ))(?:\w+\.)*(?P<name>[A-Z]\w*(?:Error|Exception|Interrupt|Exit)|StopIteration)\b(?P<more>: )?"
)
_FAILED: Final = "the computation failed"
_WORDS: Final = {
    "OutOfMemoryError": "memory ran out",
    "MemoryError": "memory ran out",
    "NotImplementedError": "the model has an operation that does not support it",
    "KeyboardInterrupt": "it was interrupted",
    "SystemExit": "the program ended itself",
    "OSError": "a file could not be read or written",
    "FileNotFoundError": "a file could not be found",
    "PermissionError": "a file may not be read or written",
}


def in_plain_words(reason: str) -> str:
    """Return a recorded reason with the names of exceptions in plain words; their messages stay.

    Example:
        >>> in_plain_words("RuntimeError: matrix is singular")
        'the computation failed: matrix is singular'
    """
    return _NAMED.sub(lambda found: _WORDS.get(found["name"], _FAILED) + (found["more"] or ""), reason)
