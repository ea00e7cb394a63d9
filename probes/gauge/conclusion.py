"""Symmetries of spaces of features, once all that is done to them is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from torch import nn

from lossscope.probes.gauge.features import Read, Space
from lossscope.probes.gauge.folding import ConstantFold, Fold, GainFold
from lossscope.probes.gauge.symmetry import Mixing, Scaling, Shift, Slot, Symmetry

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
                writers.setdefault(bias, set()).add(fold.constant.name)
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
        if space.linear and space.symmetric and not space.is_gain:
            both = {slot.name for slot in space.writes} & {read.slot.name for read in space.reads}
            space.reasons += [f"{name} reads and writes it" for name in sorted(both)]
        if space.reasons:
            self.unknown += [f"{space.name}: {reason}" for reason in dict.fromkeys(space.reasons)]
        elif space.symmetric and space.reads and not any(self._is_fixed(slot.name) for slot in slots):
            self._add_known(space)

    def _add_known(self, space: Space) -> None:
        """Add the symmetry of a space about which all is known."""
        if space.is_gain and space.linear and not space.is_sum:
            self._add_gain(space)
            return
        mixes = space.linear and not space.is_gain
        folded = self._fold_constants(space) if mixes else set()
        self._add_shifts(space, folded)
        kind = Mixing if mixes else Scaling
        reads = tuple(read.slot for read in space.reads)
        self.known.append(kind(space.name, space.size, tuple(space.writes), reads, _gains(space)))

    def _fold_constants(self, space: Space) -> set[str]:
        """Fold constants into the biases of all layers that read them; return the names of those folded."""
        folded = set()
        for constant in dict.fromkeys(one for read in space.reads for one in read.constants):
            reads = [read for read in space.reads if constant in read.constants]
            biases = [read.bias for read in reads if read.bias is not None]
            if len(biases) < len(reads) or not self._is_free((constant.name, *biases)):
                continue
            if all(read.exact for read in reads):
                self._folds.append(ConstantFold(constant, tuple(read.slot for read in reads), tuple(biases)))
                folded.add(constant.name)
            else:
                self.unknown.append(f"{constant.name}: may move into {', '.join(biases)} past a factor")
        return folded

    def _add_shifts(self, space: Space, folded: set[str]) -> None:
        """Add what may be moved between constants that are nowhere used one without the other."""
        places = [read.constants for read in space.reads] + space.bends
        together: dict[tuple[int, ...], list[Slot]] = {}
        for constant in dict.fromkeys(one for place in places for one in place):
            if constant.name not in folded and self._is_free((constant.name,)):
                together.setdefault(tuple(place.count(constant) for place in places), []).append(constant)
        for slots in together.values():
            if len(slots) > 1:
                self.known.append(Shift(" and ".join(slot.name for slot in slots), tuple(slots)))

    def _add_gain(self, space: Space) -> None:
        """Add the fold of a gain into the linear layers that read it, or say that they cannot take it over."""
        shift = space.writes[1].name if len(space.writes) > 1 else None
        fold = GainFold(space.name, space.writes[0].name, shift, *_columns(space.reads))
        dense = all(read.slot.lead == 1 and read.slot.order[0] == 1 for read in space.reads) and space.positions == 0
        if dense and self._is_free(fold.parameters) and (shift is None or None not in fold.biases):
            self._folds.append(fold)
        else:
            self.unknown.append(f"{space.name}: its gain and shift are read by layers that cannot take them over")

    def _is_free(self, names: Iterable[str]) -> bool:
        """Return True if all parameters are trainable and used once."""
        return all(self._uses[name] == 1 and self._parameters[name].requires_grad for name in names)

    def _is_fixed(self, name: str) -> bool:
        """Return True for a frozen parameter that a factor would change."""
        parameter = self._parameters[name]
        return not parameter.requires_grad and bool(parameter.detach().count_nonzero())


def _columns(reads: list[Read]) -> tuple[tuple[Slot, ...], tuple[str | None, ...]]:
    """Return the columns of the layers that read features, and their biases."""
    return tuple(read.slot for read in reads), tuple(read.bias for read in reads)


def _gains(space: Space) -> tuple[Slot, ...]:
    """Return what scales the features as long as the gains of batch norms are not folded; empty without them."""
    if not space.folds:
        return ()
    taken = {name for fold in space.folds for name in fold.parameters}
    others = [slot for slot in space.writes if slot.name not in taken]
    return (*(slot for fold in space.folds for slot in fold.gains), *others)
