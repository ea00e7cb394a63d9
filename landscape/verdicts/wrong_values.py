"""Parts of messages about wrong values: the value, shortened, and the nearest known names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

__all__ = ["nearest", "shown"]

_LONGEST: Final = 60  # characters
_MOST_LISTED: Final = 12


def shown(value: object) -> str:
    """Return a value for a message, shortened; an integer of any size is allowed."""
    if isinstance(value, int) and abs(value) >= 10**_LONGEST:
        return f"an integer of {value.bit_length()} bits"
    words = repr(value[: _LONGEST + 1] if isinstance(value, str) else value)
    return words if len(words) <= _LONGEST + 2 else f"{words[:_LONGEST]}…"


def nearest(name: str, known: Iterable[str], listed: str = "known") -> str:
    """Return a hint with the nearest of the known names; if none is near, with all of them.

    Args:
        name: The name that is not known.
        known: The known names.
        listed: Word before the list of all names.
    """
    names = list(dict.fromkeys(known))
    close = get_close_matches(name[:_LONGEST], names, n=2, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = ", ..." if len(names) > _MOST_LISTED else ""
    return f"{listed}: {', '.join(names[:_MOST_LISTED]) or 'none'}{more}"
