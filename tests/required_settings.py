"""Values for settings without a default, for the tests that run over all registered optimizers."""

from __future__ import annotations

from typing import Any, Final

from lossscope.optimizer import ENTRIES

REQUIRED: Final[dict[str, Any]] = {"nu": 1e-12}


def required(name: str) -> dict[str, Any]:
    """Return the required settings of an optimizer with a value each."""
    return {setting: REQUIRED[setting] for setting in ENTRIES[name].required}
