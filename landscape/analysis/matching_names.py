"""Names of the tensors of two files of weights: which belong together, but for a prefix, and which have no partner."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.storage.weight_arrays import SavedTensor, SavedWeights

__all__ = ["Matched", "matched"]

_NUMBERS: Final = ("f", "c", "q")  # first letters of the dtypes of floating-point, complex and quantized numbers
_NEAR: Final = 0.3  # least likeness of names that a message names


@dataclass(frozen=True)
class Matched:
    """Tensors of A and B that belong together, and those without a partner.

    Attributes:
        common: Names in A and in B of floating-point tensors of one shape, in the order of A.
        only_a: Names of tensors that A alone has.
        only_b: Names of tensors that B alone has.
        reshaped: Names of tensors with another shape in B, with both shapes.
        others: Names of tensors of integers and the like, which are not compared.
        unread: Names of tensors of numbers in a type that is not read, such as float8, which are not compared.
        prefix: Sentence about a prefix of names that was ignored; empty if there was none.
    """

    common: tuple[tuple[str, str], ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    others: tuple[str, ...]
    unread: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def complete(self) -> bool:
        """True if each tensor has its partner, and all weights are compared."""
        return not (self.only_a or self.only_b or self.reshaped or self.unread)


def matched(a: SavedWeights, b: SavedWeights) -> Matched:
    """Match the tensors of two files by name.

    A prefix such as the `module.` of a parallel model or the `_orig_mod.` of a compiled one is ignored if no name fits
    with it. Tied weights may have the name of either side; where the other side has a tensor under each of their names,
    each of them is compared.

    Raises:
        ConfigError: No tensor of one has a partner in the other.
    """
    ours, theirs = _prefixes(a.tensors, b.tensors)
    names = _in_names_of(a, b, ours, theirs)
    both = [(name, names[name]) for name in (*a.tensors, *a.aliases) if name in names]
    reshaped = [
        (name, a.of(name).shape, b.of(other).shape) for name, other in both if a.of(name).shape != b.of(other).shape
    ]
    moved = {name for name, _, _ in reshaped}
    same = [(name, other) for name, other in both if name not in moved]
    if not same:
        raise ConfigError(f"{a.name} and {b.name} are of different architectures: {_nearest(a, b, reshaped)}")
    unread = {name for name, other in same if _is_unread(a.of(name)) or _is_unread(b.of(other))}
    others = {name for name, other in same if a.of(name).read is None or b.of(other).read is None}
    taken = {other for _, other in both}
    return Matched(
        tuple((name, other) for name, other in same if name not in others),
        tuple(name for name in a.tensors if name not in names),
        tuple(name for name in b.tensors if name not in taken),
        tuple(reshaped),
        tuple(name for name, _ in same if name in others - unread),
        tuple(name for name, _ in same if name in unread),
        _sentence(a, b, ours, theirs),
    )


def _in_names_of(a: SavedWeights, b: SavedWeights, ours: str, theirs: str) -> dict[str, str]:
    """Return the names of B by the names that A has for the same tensors, tied weights included."""
    names = {ours + name.removeprefix(theirs): name for name in b.tensors}
    shown = {ours + name.removeprefix(theirs): ours + kept.removeprefix(theirs) for name, kept in b.aliases.items()}
    known = [(alias, kept) for alias, kept in a.aliases.items()] + [(kept, alias) for alias, kept in shown.items()]
    for here, wanted in known:
        if here in names and here not in a.tensors and wanted in a.tensors and wanted not in names:
            names[wanted] = names.pop(here)
    for alias, kept in shown.items():
        if alias in a.tensors and kept in a.tensors and kept in names:
            names.setdefault(alias, names[kept])
    return names


def _is_unread(tensor: SavedTensor) -> bool:
    """Return True for numbers that are no integers and cannot be read."""
    return tensor.read is None and tensor.dtype.lower().startswith(_NUMBERS)


def _prefixes(a: Collection[str], b: Collection[str]) -> tuple[str, str]:
    """Return the prefix of the names of A and that of B without which most names fit; both empty if some fit as is."""
    if set(a) & set(b):
        return "", ""
    choices = [(prefix, "") for prefix in _candidates(a, b)] + [("", prefix) for prefix in _candidates(b, a)]

    def fitting(choice: tuple[str, str]) -> int:
        """Return the number of names of B that fit."""
        return len({choice[0] + name.removeprefix(choice[1]) for name in b} & set(a))

    return max(choices, key=fitting, default=("", ""))


def _candidates(long: Collection[str], short: Collection[str]) -> Iterator[str]:
    """Yield prefixes of names of one side that a name of the other continues."""
    known = set(short)
    found = dict[str, None]()
    for name in long:
        parts = name.split(".")
        for place in range(1, len(parts)):
            if ".".join(parts[place:]) in known:
                found[".".join(parts[:place]) + "."] = None
    yield from found


def _sentence(a: SavedWeights, b: SavedWeights, ours: str, theirs: str) -> str:
    """Return a sentence about a prefix that was ignored."""
    if not (ours or theirs):
        return ""
    with_it, without = (a, b) if ours else (b, a)
    return (
        f"The names of {with_it.name} begin with {ours or theirs!r} and those of {without.name} do not: the prefix was "
        "ignored."
    )


def _nearest(a: SavedWeights, b: SavedWeights, reshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> str:
    """Return in what the tensors differ, with the names that are nearest to one another."""
    if reshaped:
        name, first, second = reshaped[0]
        return f"{name} has the shape {first} in the first and {second} in the second, and no other tensor fits"
    if not a.tensors or not b.tensors:
        return "one of them holds no tensor"
    for name in a.tensors:
        near = get_close_matches(name, list(b.tensors), n=1, cutoff=_NEAR)
        if near:
            return f"no name is in both; nearest are {name} and {near[0]}"
    return f"no name is in both; the first are {next(iter(a.tensors))} and {next(iter(b.tensors))}"
