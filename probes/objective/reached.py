"""Networks and random generators that a loss reaches beside its model: through closures, globals and attributes."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import nn

__all__ = ["Reached", "own_attributes", "reached"]

_MOST: Final = 5000  # objects that are looked at
_DEEP: Final = 8  # steps from the loss
_FOREIGN: Final = sys.stdlib_module_names | {"torch", "numpy", "scipy", "lossscope"}  # hold no network of the user
_STANDARD: Final = frozenset(vars(nn.Module()))  # attributes that every module has
_CODE: Final = types.FunctionType | types.MethodType | functools.partial | type
_GENERATORS: Final = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


@dataclass(frozen=True)
class Reached:
    """Networks, generators and objects that a loss reaches beside its model."""

    modules: tuple[nn.Module, ...] = ()  # networks that are no part of the model, each without those inside another
    generators: tuple[Any, ...] = ()  # generators of random numbers that are not global
    objects: tuple[Any, ...] = ()  # the loss, where it is an object, and the objects to which its methods are bound

    @property
    def identity(self) -> list[int]:
        """Identities of the networks, and of the objects."""
        return [*map(id, self.modules), 0, *map(id, self.objects)]


def reached(function: Any, model: nn.Module) -> Reached:
    """Find what a function reaches beside a model, in a bounded search.

    Closures, defaults and the globals and imports that its code names are followed, also those of the functions it
    calls; partial arguments, bound methods, attributes, slots, lists and dictionaries as well; of libraries nothing is
    followed.

    Args:
        function: The loss.
        model: Its modules are followed as the loss is, and not returned.

    Returns:
        The networks and the generators found, and the loss itself where it is an object.
    """
    inside = {id(module) for module in model.modules()}
    found: list[nn.Module] = []
    generators: list[Any] = []
    seen: set[int] = set()
    pending: deque[tuple[Any, int]] = deque([(function, 0), (model, 0)])
    while pending and len(seen) < _MOST:
        item, depth = pending.popleft()
        if id(item) in seen or depth > _DEEP:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module) and id(item) not in inside:
            found.append(item)
        if isinstance(item, _GENERATORS):
            generators.append(item)
        else:
            pending += [(value, depth + 1) for value in islice(_followed(item), _MOST)]
    within = {id(part) for module in found for part in module.modules() if part is not module}
    owners = (item for item in (function, getattr(function, "__self__", None)) if _is_plain(item))
    return Reached(tuple(m for m in found if id(m) not in within), tuple(generators), tuple(owners))


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that not every module has."""
    present = vars(module)
    return {name: present[name] for name in present.keys() - _STANDARD}


def _is_plain(item: Any) -> bool:
    """Return True for an object with attributes that is no network, code or class."""
    return item is not None and hasattr(item, "__dict__") and not isinstance(item, nn.Module | _CODE | types.ModuleType)


def _followed(item: Any) -> Iterator[Any]:
    """Yield what an object refers to, as far as a loss may use it."""
    if isinstance(item, functools.partial):
        yield from (item.func, *item.args, *item.keywords.values())
    elif isinstance(item, types.MethodType):
        yield from (item.__self__, item.__func__)
    elif isinstance(item, types.FunctionType):
        yield from _of_function(item)
    elif isinstance(item, dict):
        yield from item.values()
    elif isinstance(item, list | tuple | set | frozenset | deque):
        yield from item
    elif isinstance(item, nn.Module):
        yield from item.children()
        yield from own_attributes(item).values()
        yield from (*item._forward_hooks.values(), *item._forward_pre_hooks.values(), type(item))
    elif isinstance(item, type):
        yield from _methods(item)
    elif _is_plain(item) and not _is_foreign(type(item)):
        yield from (*vars(item).values(), *_slots(item), type(item))
    elif not _is_foreign(type(item)):
        yield from (*_slots(item), type(item))


def _slots(item: Any) -> Iterator[Any]:
    """Yield the values of an object's `__slots__`, those that are set."""
    for base in type(item).__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            mangled = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and name[-2:] != "__" else name
            slot = vars(base).get(mangled)
            if isinstance(slot, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # not set
                    yield slot.__get__(item)


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    """Yield what the code of a function refers to."""
    if _is_foreign(function):
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()  # __wrapped__ among them
    names = set(_names(function.__code__))
    imported = names & sys.modules.keys() - function.__globals__.keys()  # by an import inside the function
    values = [function.__globals__[name] for name in names & function.__globals__.keys()]
    for value in (*values, *(sys.modules[name] for name in imported)):
        if isinstance(value, types.ModuleType):
            if not _is_foreign_name(value.__name__):
                yield from (vars(value)[inner] for inner in names & vars(value).keys())
        elif not isinstance(value, type):
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that some code and the code inside it refers to."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _methods(kind: type) -> Iterable[Any]:
    """Return the functions in the body of a class and its bases, without those of libraries."""
    bodies = (vars(base).values() for base in kind.__mro__ if not _is_foreign(base))
    return [value for body in bodies for value in body if isinstance(value, types.FunctionType)]


def _is_foreign(item: Any) -> bool:
    return _is_foreign_name(getattr(item, "__module__", None) or "")


def _is_foreign_name(name: str) -> bool:
    return name.partition(".")[0] in _FOREIGN
