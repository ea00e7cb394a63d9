"""Public names of the probes, with the kinds of arguments for which a table of measures must have them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import lossscope.probes

__all__ = ["public", "takes"]


def takes(function: Any, kinds: str) -> bool:
    """Return True if a parameter of the function, or of a public method of the class, is annotated with a kind."""
    if inspect.isclass(function):
        methods = [m for name, m in vars(function).items() if inspect.isfunction(m) and name[0] != "_"]
        return any(takes(m, kinds) for m in [function.__init__, *methods])
    if not inspect.isfunction(function):
        return False
    parameters = inspect.signature(function).parameters.values()
    return any(re.search(rf"\b({kinds})\b", str(p.annotation)) for p in parameters)


def public() -> Iterator[tuple[str, Any, str]]:
    """Yield every public name of the probes, with the argument types for which it must be in the table."""
    for name in lossscope.probes.__all__:
        yield name, getattr(lossscope.probes, name), "Objective|SymmetricOperator"
    for module in pkgutil.walk_packages(lossscope.probes.__path__, "lossscope.probes."):
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", ()):
            if inspect.isfunction(getattr(loaded, name)):
                yield name, getattr(loaded, name), "Objective"
