"""The one error that the probes raise."""

from __future__ import annotations

from lossscope.errors import LossscopeError

__all__ = ["ProbeError"]


class ProbeError(LossscopeError, ValueError):
    """A measurement that cannot be made: the message names the value, the bound and what to do."""
