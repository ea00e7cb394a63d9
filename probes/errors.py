"""The one error that the probes raise."""

from __future__ import annotations

__all__ = ["ProbeError"]


class ProbeError(ValueError):
    """A measurement that cannot be made: the message names the value, the bound and what to do."""
