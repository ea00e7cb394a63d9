"""Arguments that are whole numbers, of any library."""

from __future__ import annotations

import operator
from typing import Final

from lossscope.landscape.errors import ConfigError

__all__ = ["integer", "whole_number"]

_LARGEST: Final = 2**53  # integers up to this are exact in every JSON reader


def whole_number(name: str, value: object, *, least: int, most: int = _LARGEST) -> int | None:
    """Return an argument that counts something, an integer of any library; None if it is None.

    Raises:
        ConfigError: It is no integer, or out of bounds.
    """
    number = integer(value)
    if value is not None and (number is None or not least <= number <= most):
        raise ConfigError(f"{name} must be an integer from {least} to {most}, got {str(value)[:40]!r}")
    return number


def integer(value: object) -> int | None:
    """Return an integer of any library as an int; None for anything else, and for True and False."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # of a tensor of several numbers, or of floating ones
        return None
