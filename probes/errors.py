"""Exception raised and warning given by all probes."""

from __future__ import annotations

from lossscope.errors import LossscopeError

__all__ = ["ProbeError", "ProbeWarning"]


class ProbeError(LossscopeError, ValueError):
    """Raised if a measurement cannot be made; the message gives the value, the allowed range and the remedy."""


class ProbeWarning(UserWarning):
    """Given once for an objective whose weights of batches could not be checked; the message gives the remedy."""
