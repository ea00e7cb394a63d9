"""Constant parts of features: which move into the biases behind them, and which into one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch

from lossscope.probes.gauge.features import Constant, Read, Space
from lossscope.probes.gauge.folding import ConstantFold
from lossscope.probes.gauge.symmetry import Shift, Slot

__all__ = ["ConstantMoves"]

Counts: TypeAlias = tuple[int, ...]  # how often a constant is added in each place where features of a space are used


class ConstantMoves:
    """Moves of the constants of one space: `folds`, `shifts`, and what may move in a way that is `unknown`.

    A layer with a bias needs no constant c, as W c may be a part of that bias. Functions that are not linear need all
    constants, and so do layers without a bias, unless one is added behind them.

    Args:
        space: The features.
        is_free: Returns True if all parameters of some names are trainable and used once.
        rank: Returns the rank of weights that read the features.
    """

    def __init__(
        self, space: Space, is_free: Callable[[Iterable[str]], bool], rank: Callable[[Iterable[Slot]], int]
    ) -> None:
        self._space, self._is_free, self._rank = space, is_free, rank
        biases = [self._bias(read) for read in space.reads]
        self._takers = [(read, bias) for read, bias in zip(space.reads, biases, strict=True) if bias is not None]
        self._needy = [read for read, bias in zip(space.reads, biases, strict=True) if bias is None]
        self._places = [place for place in range(len(space.values)) if place >= len(biases) or biases[place] is None]
        self.folds: list[ConstantFold] = []
        self.shifts: list[Shift] = []
        self.unknown: list[str] = []
        groups: dict[Counts, list[Slot]] = {}
        for constant in _constants(space):
            if isinstance(constant, Slot) and is_free((constant.name,)) and not self._is_moved(constant):
                groups.setdefault(_counts(space, constant), []).append(constant)
        self._add_shifts(groups)

    def _bias(self, read: Read) -> Slot | None:
        """Return what can take over constants that are read: the bias of the layer, or one that is added behind it."""
        if read.bias is not None:
            return read.bias if self._is_free((read.bias.name,)) else None
        if read.target is None:
            return None
        space = read.target.whole
        for one in _constants(space):
            if isinstance(one, Slot) and self._is_free((one.name,)) and _counts(space, one) == _counts(space, read):
                return one if _is_exact(space, read) else None
        return None

    def _is_moved(self, constant: Slot) -> bool:
        """Fold a constant that no place needs, or say why it may move; return False if it stays."""
        takers = [(read, bias) for read, bias in self._takers if constant in read.value.constants]
        into = ", ".join(dict.fromkeys(bias.name for _, bias in takers))
        if not takers:
            return False
        if any(_counts(self._space, constant)[place] for place in self._places):
            needy = [read.slot for read in self._needy if constant in read.value.constants]
            bent = any(constant in value.constants for value in self._space.bends)
            if not bent and self._rank(needy) < self._space.size:
                self.unknown.append(f"{constant.name}: what no layer without a bias reads of it may move into {into}")
            return False
        if not _is_exact(self._space, constant):
            self.unknown.append(f"{constant.name}: may move into {into} past a factor")
            return True
        slots, biases = (tuple(of) for of in zip(*((read.slot, bias) for read, bias in takers), strict=True))
        times = tuple(read.value.constants.count(constant) for read, _ in takers)
        self.folds.append(ConstantFold(constant, slots, biases, times))
        return True

    def _add_shifts(self, groups: dict[Counts, list[Slot]]) -> None:
        """Add what may be moved between constants that are nowhere used one without the other."""
        for slots in groups.values():
            words = " and ".join(slot.name for slot in slots)
            if len(slots) > 1 and all(_is_exact(self._space, slot) for slot in slots):
                self.shifts.append(Shift(words, tuple(slots)))
            elif len(slots) > 1:
                self.unknown.append(f"{words}: a constant vector may move between them past a factor")
        names = {counts: slots[0].name for counts, slots in groups.items()}
        for read in _constants(self._space):
            if isinstance(read, Read) and self._bias(read) is None and self._is_movable(read):
                names[_counts(self._space, read)] = f"what {read.slot.name} makes of constants"
        seen = torch.tensor([[counts[place] for place in self._places] for counts in names], dtype=torch.float64)
        if names and (not self._places or int(torch.linalg.matrix_rank(seen)) < len(names)):
            self.unknown.append(f"{', '.join(names.values())}: constants may move from some of them into others")

    def _is_movable(self, read: Read) -> bool:
        """Return True if any constant that is read can be changed."""
        return any(
            self._is_free((one.name,)) if isinstance(one, Slot) else self._is_movable(one)
            for one in read.value.constants
        )


def _constants(space: Space) -> list[Constant]:
    """Return all constants of the features, wherever they are used."""
    return list(dict.fromkeys(one for value in space.values for one in value.constants))


def _counts(space: Space, constant: Constant) -> Counts:
    """Return how often a constant is added in each place."""
    return tuple(value.constants.count(constant) for value in space.values)


def _is_exact(space: Space, constant: Constant) -> bool:
    """Return True if a constant is nowhere at another scale."""
    return all(value.exact for value in space.values if constant in value.constants)
