"""State of modules beside their parameters and buffers: attributes, containers and entries that a forward pass sets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from operator import is_
from typing import Any, Final

import torch
from torch import Tensor, nn

from lossscope.probes.objective.reached import own_attributes

__all__ = ["ModuleState"]

_LARGEST: Final = 2**18  # entries of a tensor beyond which no copy is kept
_LONGEST: Final = 1000  # entries of a list or dictionary beyond which no copy is kept: data, a vocabulary
_NESTED: Final = 3  # containers inside containers


class ModuleState:
    """Copies of what modules and other objects hold, taken at construction, to be put back.

    Covered are plain attributes; lists, dictionaries, sets and deques among them, nested ones too; tensors among
    those, which a forward pass may write into; and entries for parameters, buffers and submodules that are None,
    replaced, added or removed. The numbers in parameters and buffers are not covered: losses see copies of them.

    Args:
        modules: The modules.
        objects: Other objects, whose attributes are covered too.
    """

    def __init__(self, modules: Iterable[nn.Module], objects: Iterable[Any] = ()) -> None:
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        for module in modules:
            self._attributes.append((module, vars(module).copy()))
            if not isinstance(module, torch.jit.ScriptModule):
                tables = (module._parameters, module._buffers, module._modules)
                self._containers += [(table, table.copy()) for table in tables]
            for value in own_attributes(module).values():
                self._keep(value, 0)
        for item in objects:
            self._attributes.append((item, vars(item).copy()))
            for value in vars(item).values():
                self._keep(value, 0)

    def restore(self) -> None:
        """Put back what was changed."""
        for item, before in self._attributes:
            present = vars(item)  # not setattr, which would register tensors
            for name in present.keys() - before.keys():
                del present[name]
            present.update(before)
        for container, copy in self._containers:
            if _differ(container, copy):
                _refill(container, copy)
        for tensor, version, copy in self._tensors:
            if tensor._version != version:
                tensor.data.copy_(copy)

    def _keep(self, value: Any, depth: int) -> None:
        """Keep a copy of an attribute, and of what it contains."""
        if isinstance(value, Tensor):
            if not value.requires_grad and value.numel() <= _LARGEST and not value.is_inference():
                self._tensors.append((value, value._version, value.detach().clone()))
        elif isinstance(value, dict | list | set | deque) and len(value) <= _LONGEST:
            self._containers.append((value, value.copy()))
            if depth < _NESTED and not isinstance(value, set):
                for inner in value.values() if isinstance(value, dict) else value:
                    self._keep(inner, depth + 1)


def _differ(container: Any, copy: Any) -> bool:
    """Return True if a container does not hold the same objects as its copy, in the same order."""
    if len(container) != len(copy):
        return True
    if isinstance(container, dict) and not all(map(is_, container.values(), copy.values())):
        return True
    return not all(map(is_, container, copy))


def _refill(container: Any, copy: Any) -> None:
    """Give a container the content of its copy."""
    container.clear()
    if isinstance(container, dict | set):
        container.update(copy)
    else:
        container.extend(copy)
