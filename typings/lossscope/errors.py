"""The root of all errors that lossscope raises on purpose."""

__all__ = ["LossscopeError"]


class LossscopeError(Exception):
    """A known error: its message is one line with what was given, what is allowed and what to do."""
