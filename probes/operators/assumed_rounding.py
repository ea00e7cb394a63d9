"""Rounding that is assumed, rather than measured by a copy of the model in another dtype, for want of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["assuming_rounding", "rounding_is_assumed"]

_ASSUMED: ContextVar[bool] = ContextVar("assumed", default=False)


@contextmanager
def assuming_rounding(assumed: bool = True) -> Iterator[None]:
    """Assume the rounding of products and numbers inside this context: nothing is computed in another dtype.

    Args:
        assumed: False to change nothing.

    Yields:
        Nothing.
    """
    token = _ASSUMED.set(_ASSUMED.get() or assumed)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def rounding_is_assumed() -> bool:
    """Return True inside `assuming_rounding`."""
    return _ASSUMED.get()
