"""Squared norm of the weights as a function of the logarithms of the neurons' factors, and its minimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.symmetry import Scaling, Slot, Weights

__all__ = ["ScalingEnergy"]

_CONVERGED: Final = 1e-12  # largest relative difference of the squared norms on both sides of a neuron
_SWEEPS: Final = 8  # steps of all neurons at once before Newton's method, which then starts near the minimum
_STEPS: Final = 200
_SOLVED: Final = 1e-8  # relative residual of a Newton step
_HALVINGS: Final = 40

Part: TypeAlias = tuple[str, str]  # name of a weight, and the part of it as text
Block: TypeAlias = tuple[Tensor, slice, slice]  # (written neurons, read neurons), and where their logarithms stand


class ScalingEnergy:
    r"""The squared norm :math:`\sum_{ij} q_{ij} e^{2 x_i - 2 x_j}` of the weights whose neurons are rescaled by e^x.

    :math:`q_{ij}` is the sum of the squares of the weights that neuron i receives from neuron j. Weights from inputs
    and to outputs have one fixed logarithm 0 in place of j or i. It is convex, as a sum of exponentials of linear
    functions, and strictly so in the logarithms of neurons that have weights on both sides.

    Args:
        scalings: Layers of neurons; each neuron has weights on both sides, or on none.
        weights: Float64 weights by name.
    """

    def __init__(self, scalings: Sequence[Scaling], weights: Weights) -> None:
        self._places: list[slice] = []
        self.size = 0
        written: dict[Part, list[tuple[Tensor, slice]]] = {}
        read: dict[Part, list[tuple[Tensor, slice]]] = {}
        values: dict[Part, Tensor] = {}
        for one in scalings:
            place = slice(self.size, self.size + one.size)
            self._places.append(place)
            self.size += one.size
            for slots, table in ((one.writes, written), (one.reads, read)):
                for slot in slots:
                    part, whole = slot.part(weights), (slot.name, str(slot.pick))
                    values[whole] = part
                    index = torch.ones(part.shape, dtype=torch.int64)
                    Slot("", tuple(part.shape), slot.order, slot.lead).multiply({"": index}, torch.arange(one.size))
                    table.setdefault(whole, []).append((index.reshape(-1), place))
        fixed = slice(self.size, self.size + 1)
        self._blocks: list[Block] = []
        for key, value in values.items():
            if any(name == key[0] and pick != key[1] and "()" in (pick, key[1]) for name, pick in values):
                raise ProbeError(f"{key[0]}: a layer of neurons has a part of it, another one all: report this network")
            rows, columns = (self._side(table.get(key), value, fixed) for table in (written, read))
            self._blocks.append(_block(value, rows, columns))

    @staticmethod
    def _side(found: list[tuple[Tensor, slice]] | None, like: Tensor, fixed: slice) -> tuple[Tensor, slice]:
        """Return the neuron of each weight on one side, and where the logarithms of that layer stand."""
        if found is None:
            return torch.zeros(like.numel(), dtype=torch.int64), fixed
        if len(found) > 1:
            raise ProbeError("a weight belongs to two layers of neurons on one side: report this network")
        return found[0]

    def minimum(self) -> list[Tensor]:
        """Return the logarithms of the factors of each layer at the minimum.

        Raises:
            ProbeError: Newton's method does not converge.
        """
        x = torch.zeros(self.size + 1, dtype=torch.float64)
        for _ in range(_SWEEPS):
            written, read = self._sums(self._terms(x))
            change = torch.where(written > 0, read / written, 1.0).log() / 8  # half of what would balance each alone
            x[:-1] += change[:-1]
        x = self._newton(x)
        return [x[place] for place in self._places]

    def _newton(self, x: Tensor) -> Tensor:
        """Return the minimum, by Newton's method from logarithms near it."""
        for _ in range(_STEPS):
            terms = self._terms(x)
            written, read = self._sums(terms)
            relative = torch.where(written > 0, (written - read) / (written + read), 0.0)
            apart = float(relative[:-1].abs().max())
            if apart <= _CONVERGED:
                return x
            x = self._descended(x, self._newton_step(terms, written, read), float(sum(map(torch.sum, terms))))
        raise ProbeError(f"balancing did not converge in {_STEPS} steps: norms still differ by {apart:.1e}")

    def _newton_step(self, terms: list[Tensor], written: Tensor, read: Tensor) -> Tensor:
        """Return the Newton step by conjugate gradients, preconditioned by the diagonal."""
        both = written + read
        diagonal, residual = torch.where(both > 0, 2 * both, 1.0), read - written
        diagonal[-1], residual[-1] = 1.0, 0.0
        step = torch.zeros_like(residual)
        scaled = residual / diagonal
        direction, size = scaled.clone(), float((residual * scaled).sum())
        target = size * _SOLVED**2
        for _ in range(10 * self.size):
            if size <= target:
                break
            image = diagonal * direction - 2 * self._coupled(terms, direction)
            image[-1] = 0.0
            length = size / float((direction * image).sum())
            step += length * direction
            residual = residual - length * image
            scaled = residual / diagonal
            new = float((residual * scaled).sum())
            direction, size = scaled + new / size * direction, new
        return step

    def _coupled(self, terms: list[Tensor], direction: Tensor) -> Tensor:
        """Return the product of the weights between layers with a direction."""
        image = torch.zeros_like(direction)
        for term, (_, rows, columns) in zip(terms, self._blocks, strict=True):
            image[rows] += term @ direction[columns]
            image[columns] += term.mT @ direction[rows]
        return image

    def _descended(self, x: Tensor, step: Tensor, value: float) -> Tensor:
        """Return the logarithms after the longest halving of a step that does not raise the squared norm."""
        for power in range(_HALVINGS):
            tried = x + 0.5**power * step
            if float(sum(map(torch.sum, self._terms(tried)))) <= value * (1 + 1e-13):
                return tried
        return x

    def _terms(self, x: Tensor) -> list[Tensor]:
        """Return the squares of each block at some logarithms."""
        return [Q * (2 * (x[rows, None] - x[columns])).exp() for Q, rows, columns in self._blocks]

    def _sums(self, terms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the squared norms of what goes into and out of each neuron."""
        written, read = (torch.zeros(self.size + 1, dtype=torch.float64) for _ in range(2))
        for term, (_, rows, columns) in zip(terms, self._blocks, strict=True):
            written[rows] += term.sum(1)
            read[columns] += term.sum(0)
        return written, read


def _block(weight: Tensor, rows: tuple[Tensor, slice], columns: tuple[Tensor, slice]) -> Block:
    """Return the sums of the squares of a weight, by the neurons on its two sides."""
    (i, at_rows), (j, at_columns) = rows, columns
    height, width = (at.stop - at.start for at in (at_rows, at_columns))
    where = i * width + j
    squares = weight.detach().cpu().reshape(-1).square()
    sums = torch.bincount(where, squares, minlength=height * width).reshape(height, width)
    return sums, at_rows, at_columns
