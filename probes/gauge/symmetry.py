"""Symmetries of a network: maps of its parameters that keep its function, and the parts of parameters they scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

__all__ = ["Mixing", "Scaling", "Shift", "Slot", "Symmetry", "Weights"]

Weights: TypeAlias = dict[str, Tensor]  # name -> float64 tensor, contiguous


@dataclass(frozen=True)
class Slot:
    """The part of one tensor that is indexed by neurons, as a view with the neurons first.

    Attributes:
        name: Name of the parameter.
        shape: Shape to view it in.
        order: Order of the axes of that shape, those of the neurons first.
        lead: Number of axes that index neurons: one, or two for grouped convolutions (group, channel in it).
        pick: Indices into the first axes of that shape, for a part of it: one head of several, say. An integer removes
            its axis; `order` is that of the axes that stay.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    lead: int = 1
    pick: tuple[int | slice, ...] = ()

    @property
    def columns(self) -> int:
        """Number of weights of each neuron, where the slot is a whole parameter."""
        return math.prod(self.shape[axis] for axis in self.order[self.lead :])

    def part(self, weights: Weights) -> Tensor:
        """Return the part of the weight, with its axes in their own order."""
        return weights[self.name].view(self.shape)[self.pick]

    def of(self, weights: Weights) -> Tensor:
        """Return the view, `(neurons, ...)` or `(groups, neurons of a group, ...)`."""
        return self.part(weights).permute(self.order)

    def rows(self, weights: Weights) -> Tensor:
        """Return a copy with one row for each neuron, `(neurons, k)`."""
        view = self.of(weights)
        return view.reshape(math.prod(view.shape[: self.lead]), -1)

    def multiply(self, weights: Weights, factors: Tensor) -> None:
        """Multiply the row of each neuron by its factor, in place."""
        view = self.of(weights)
        view *= factors.reshape(*view.shape[: self.lead], *[1] * (view.ndim - self.lead))

    def assign(self, weights: Weights, rows: Tensor) -> None:
        """Replace the rows of all neurons, in place."""
        view = self.of(weights)
        view.copy_(rows.reshape(view.shape))


@dataclass(frozen=True)
class Scaling:
    """Neurons whose incoming weights may be multiplied by positive numbers and the outgoing ones divided by them.

    Attributes:
        name: The layer that the neurons belong to, as text.
        size: Number of neurons.
        writes: The incoming weights and biases.
        reads: The outgoing weights.
        gains: Gain and shift behind the incoming weights, which scale the neurons as long as they are not folded.
    """

    name: str
    size: int
    writes: tuple[Slot, ...]
    reads: tuple[Slot, ...]
    gains: tuple[Slot, ...] = ()

    @property
    def words(self) -> str:
        """The symmetry in words."""
        return f"scale of each of the {self.size} neurons of {self.name}"


@dataclass(frozen=True)
class Mixing:
    """A space between two linear maps: one may be multiplied by any invertible matrix, the other by its inverse.

    Attributes:
        name: The layer that writes into the space, as text.
        size: Dimension of the space.
        writes: Weights and biases of the first map, one row for each dimension.
        reads: Weights of the second map, likewise.
        gains: As for `Scaling`.
    """

    name: str
    size: int
    writes: tuple[Slot, ...]
    reads: tuple[Slot, ...]
    gains: tuple[Slot, ...] = ()

    @property
    def words(self) -> str:
        """The symmetry in words."""
        return f"basis of the {self.size} dimensions after {self.name}"


@dataclass(frozen=True)
class Shift:
    """Summands between which a constant vector may be moved: one is added to, the other subtracted from.

    Attributes:
        name: The summands, as text.
        writes: The summands, one row for each dimension: the vector is added to each column.
    """

    name: str
    writes: tuple[Slot, ...]
    reads: tuple[Slot, ...] = ()
    gains: tuple[Slot, ...] = ()

    @property
    def words(self) -> str:
        """The symmetry in words."""
        return f"constant vector between {self.name}"


Symmetry: TypeAlias = Scaling | Mixing | Shift
