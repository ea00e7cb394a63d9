"""Values for settings without a default, for the tests that run over all registered optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from torch import Tensor, nn

from lossscope import optimizer
from lossscope.optimizer import ENTRIES
from lossscope.optimizer.update.rules import RULES

__all__ = ["ONE_KIND_OF_PASS", "REQUIRED", "create", "required"]

ONE_KIND_OF_PASS: Final = tuple(name for name, rule in RULES.items() if rule.needs is None)  # an ascent takes these
REQUIRED: Final[dict[str, Any]] = {"nu": 0.0}  # CLion then takes sign steps only


def required(name: str) -> dict[str, Any]:
    """Return the required settings of an optimizer with a value each; nothing for an unknown name."""
    return {setting: REQUIRED[setting] for setting in ENTRIES[name].required} if name in ENTRIES else {}


def create(name: str, parameters: nn.Module | Iterable[tuple[str, Tensor]], **overrides: Any) -> Any:
    """Return `optimizer.create(...)` with values for the required settings of the optimizer and of its base."""
    needed = required(name) | required(str(overrides.get("base")))
    return optimizer.create(name, parameters, **{**needed, **overrides})
