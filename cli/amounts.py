"""Durations and numbers of bytes as text."""

from __future__ import annotations

__all__ = ["bytes_text", "duration_text"]


def duration_text(seconds: float) -> str:
    """Return a duration in words, of which short ones have their milliseconds."""
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def bytes_text(count: int) -> str:
    """Return a number of bytes with a unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
