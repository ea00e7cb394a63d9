"""Symmetries of spaces of features, once all that is done to them is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

import torch
from torch import nn

from lossscope.probes.gauge.constants import ConstantMoves
from lossscope.probes.gauge.features import Read, Space
from lossscope.probes.gauge.folding import ConstantFold, Fold, GainFold
from lossscope.probes.gauge.symmetry import Mixing, Scaling, Slot, Symmetry
from lossscope.probes.gauge.unread import parts_without_effect
from lossscope.probes.sums import all_finite, gram

__all__ = ["Conclusion", "Symmetries"]


@dataclass(frozen=True)
class Symmetries:
    """The rescaling symmetries of a network.

    Attributes:
        known: The symmetries, in the order of the layers, once the gains are folded.
        folds: Gains that weights beside them can take over.
        unknown: Layers whose symmetries are not known, with the reason; empty if there are none.
    """

    known: tuple[Symmetry, ...]
    folds: tuple[Fold, ...]
    unknown: tuple[str, ...]


class Conclusion:
    """Symmetries, folds and reasons that follow from spaces.

    Args:
        parameters: Parameters of the network by name.
        uses: Number of times that each is used in a forward pass.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], uses: Mapping[str, int]) -> None:
        self._parameters, self._uses = parameters, uses
        self.known: list[Symmetry] = []
        self.unknown: list[str] = []
        self._folds: list[Fold] = []

    @property
    def folds(self) -> tuple[Fold, ...]:
        """All folds in an order in which they can be applied: a constant moves on after all that it takes over."""
        constants = [fold for fold in self._folds if isinstance(fold, ConstantFold)]
        others = [fold for fold in self._folds if not isinstance(fold, ConstantFold)]
        writers: dict[str, set[str]] = {fold.constant.name: set() for fold in constants}
        for fold in constants:
            for bias in fold.biases:
                writers.setdefault(bias.name, set()).add(fold.constant.name)
        order = {name: place for place, name in enumerate(TopologicalSorter(writers).static_order())}
        return (*others, *sorted(constants, key=lambda fold: order[fold.constant.name]))

    def add_pairs(self, pairs: Iterable[Mixing], folds: Iterable[ConstantFold]) -> None:
        """Add the symmetries inside an attention layer, unless its weights are frozen or used by others too."""
        for pair in pairs:
            slots = (*pair.writes, *pair.reads)
            if shared := [slot.name for slot in slots if self._uses[slot.name] > 1]:
                self.unknown.append(f"{pair.name}: {shared[0]} is used more than once")
            elif not any(self._is_fixed(slot.name) for slot in slots):
                self.known.append(pair)
        self._folds += [fold for fold in folds if self._is_free(fold.parameters)]

    def add(self, space: Space) -> None:
        """Add the symmetry of a space, or the reasons for which it is not known."""
        slots = (*space.writes, *(read.slot for read in space.reads))
        for slot in slots:
            if self._uses[slot.name] > 1:
                space.reasons.append(f"{slot.name} is used more than once")
        for fold in space.folds:
            if self._is_free(fold.parameters):
                self._folds.append(fold)
            else:
                space.reasons.append(f"{fold.name} or the layer before it is used more than once")
        if space.mixes and space.symmetric:
            both = {slot.name for slot in space.writes} & {read.slot.name for read in space.reads}
            space.reasons += [f"{name} reads and writes it" for name in sorted(both)]
        if space.linear and space.symmetric and 1 < space.block < space.size and not space.is_gain:
            space.reasons.append(f"its basis may change within groups of {space.block} features")
        free = space.symmetric and not any(self._is_fixed(slot.name) for slot in slots)
        if not any(self._parameters[slot.name].requires_grad for slot in space.writes):
            space.reasons.clear()  # no factor and no basis can change what is written
        if space.reasons:
            self.unknown += [f"{space.name}: {reason}" for reason in dict.fromkeys(space.reasons)]
        elif space.size and space.reads:
            self._add_known(space, free=free)

    def _add_known(self, space: Space, *, free: bool) -> None:
        """Add the symmetry of a space about which all is known; without one, if it is not free, only its constants."""
        if free and space.is_gain and space.linear and space.block == space.size and not space.is_sum:
            self._add_gain(space)
            return
        moves = ConstantMoves(space, self._is_free, self._rank)
        self._folds += moves.folds
        self.known += moves.shifts
        self.unknown += moves.unknown
        gone = {fold.constant for fold in moves.folds if fold.constant.columns == 1}
        others = lambda slot: slot not in gone and self._is_free((slot.name,))  # noqa: E731
        self.unknown += parts_without_effect(space, mixes=free and space.mixes, is_free=others, rank=self._rank)
        if free:
            kind = Mixing if space.mixes else Scaling
            reads = tuple(read.slot for read in space.reads)
            self.known.append(kind(space.name, space.size, tuple(space.writes), reads, _gains(space)))

    def _add_gain(self, space: Space) -> None:
        """Add the fold of a gain into the linear layers that read it, or say that they cannot take it over."""
        shift = space.writes[1].name if len(space.writes) > 1 else None
        fold = GainFold(space.name, space.writes[0].name, shift, *_columns(space.reads))
        dense = all(read.slot.lead == 1 and read.slot.order[0] == 1 for read in space.reads) and space.positions == 0
        if dense and self._is_free(fold.parameters) and (shift is None or None not in fold.biases):
            self._folds.append(fold)
        else:
            self.unknown.append(f"{space.name}: its gain and shift are read by layers that cannot take them over")

    def _rank(self, slots: Iterable[Slot]) -> int:
        """Return the rank of weights with one row for each feature, up to a relative error of 1e-7."""
        rows = [
            slot.rows({slot.name: self._parameters[slot.name].detach().double().cpu().contiguous()}) for slot in slots
        ]
        if not rows or not all_finite(stacked := torch.cat(rows, 1)):
            return 0
        return int(torch.linalg.matrix_rank(gram(stacked, stacked), hermitian=True))

    def _is_free(self, names: Iterable[str]) -> bool:
        """Return True if all parameters are trainable and used once."""
        return all(self._uses[name] == 1 and self._parameters[name].requires_grad for name in names)

    def _is_fixed(self, name: str) -> bool:
        """Return True for a frozen parameter that a factor would change."""
        parameter = self._parameters[name]
        return not parameter.requires_grad and bool(parameter.detach().count_nonzero())


def _columns(reads: list[Read]) -> tuple[tuple[Slot, ...], tuple[Slot | None, ...]]:
    """Return the columns of the layers that read features, and their biases."""
    return tuple(read.slot for read in reads), tuple(read.bias for read in reads)


def _gains(space: Space) -> tuple[Slot, ...]:
    """Return what scales the features as long as the gains of batch norms are not folded; empty without them."""
    if not space.folds:
        return ()
    taken = {name for fold in space.folds for name in fold.parameters}
    others = [slot for slot in space.writes if slot.name not in taken]
    return (*(slot for fold in space.folds for slot in fold.gains), *others)
