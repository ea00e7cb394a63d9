"""Exception raised by all probes."""

from __future__ import annotations

from lossscope.errors import LossscopeError

__all__ = ["ProbeError"]


class ProbeError(LossscopeError, ValueError):
    """Raised if a measurement cannot be made; the message gives the value, the allowed range and the remedy."""
