"""Least-norm point of a function under its symmetries, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.energy import ScalingEnergy
from lossscope.probes.gauge.symmetry import Mixing, Scaling, Shift, Slot, Symmetry, Weights
from lossscope.probes.sums import all_finite, gram, norm, row_norms

__all__ = ["least_norm", "random_scaling"]

_CONVERGED: Final = 1e-12  # largest relative difference of the two sides of a space
_ROUNDS: Final = 1000


def least_norm(symmetries: Sequence[Symmetry], weights: Weights) -> None:
    """Move the weights, in place, to the point of least norm that the symmetries can reach.

    The point is unique, as the squared norm is convex along the symmetries: up to rotations of the spaces between
    linear layers, which do not change the eigenvalues of a Hessian.

    Args:
        symmetries: What may be changed.
        weights: Float64 weights by name.

    Raises:
        ProbeError: The weights are not finite or the rounds do not converge.
    """
    if not all(all_finite(weight) for weight in weights.values()):
        raise ProbeError("the weights are not finite: nothing can be balanced")
    scalings = [one for one in symmetries if isinstance(one, Scaling)]
    mixings = [one for one in symmetries if isinstance(one, Mixing)]
    for shift in symmetries:
        if isinstance(shift, Shift):
            _center(shift, weights)
    for _ in range(_ROUNDS):
        apart = max((_rotate(one, weights) for one in mixings), default=0.0)
        moved = _rescale(scalings, weights)
        if max(apart, moved) <= _CONVERGED or not mixings or (len(mixings) == 1 and not scalings):
            return
    raise ProbeError(f"balancing did not converge in {_ROUNDS} rounds: two sides still differ by {apart:.1e}")


def random_scaling(symmetries: Iterable[Symmetry], weights: Weights, generator: torch.Generator) -> None:
    """Multiply the rows of each neuron by a log-normal factor and divide its columns by it, in place.

    Args:
        symmetries: What may be changed.
        weights: Float64 weights by name.
        generator: Source of the factors, on the CPU.
    """
    for one in symmetries:
        if isinstance(one, Shift):
            continue
        factors = torch.randn(one.size, generator=generator, dtype=torch.float64).exp()
        _multiply(one.gains or one.writes, weights, factors)
        _multiply(one.reads, weights, 1 / factors)


def _rescale(scalings: Sequence[Scaling], weights: Weights) -> float:
    """Bring all neurons to their least norm; return the largest logarithm of a factor."""
    if not scalings:
        return 0.0
    while any([_silence(one, weights) for one in scalings]):
        pass  # a layer that loses its last input or output has no effect either
    found = ScalingEnergy(scalings, weights).minimum()
    for one, logarithms in zip(scalings, found, strict=True):
        _multiply(one.writes, weights, logarithms.exp())
        _multiply(one.reads, weights, (-logarithms).exp())
    return max(float(one.abs().max()) for one in found)


def _silence(scaling: Scaling, weights: Weights) -> bool:
    """Set neurons without weights on one side to zero; return True if a weight was not zero before.

    Such a neuron has no effect on the function, and zero is the limit of the least norm.
    """
    written, read = (row_norms(_rows(slots, weights)) for slots in (scaling.writes, scaling.reads))
    idle = (written > 0) != (read > 0)
    if not idle.any():
        return False
    for slots in (scaling.writes, scaling.reads):
        _multiply(slots, weights, torch.where(idle, 0.0, 1.0).to(torch.float64))
    return True


def _center(shift: Shift, weights: Weights) -> None:
    r"""Move a constant vector between summands of :math:`n_i` columns such that their squared norm is least.

    Their means then are :math:`c / (n_i \sum_j 1 / n_j)`, with c the sum of the means.
    """
    means = [slot.rows(weights).mean(1) for slot in shift.writes]
    counts = [slot.rows(weights).shape[1] for slot in shift.writes]
    total = torch.stack(means).sum(0) / sum(1 / count for count in counts)
    for slot, mean, count in zip(shift.writes, means, counts, strict=True):
        slot.assign(weights, slot.rows(weights) + (total / count - mean)[:, None])


def _rotate(mixing: Mixing, weights: Weights) -> float:
    r"""Replace two maps by the balanced factors of their product, :math:`BA = (U S^{1/2}) (S^{1/2} V^\top)`.

    Their Gram matrices are then equal, :math:`A A^\top = B^\top B`. Return by how much they differed.
    """
    written, read = (_rows(slots, weights) for slots in (mixing.writes, mixing.reads))
    inner, outer = gram(written, written), gram(read, read)
    apart = float(norm(inner - outer)) / max(float(norm(inner)), float(norm(outer)), torch.finfo(torch.float64).tiny)
    if apart <= _CONVERGED:
        return apart
    (left, small_left), (right, small_right) = (torch.linalg.qr(side.mT) for side in (read, written))
    U, S, Vh = torch.linalg.svd(gram(small_left, small_right), full_matrices=False)
    root = S.sqrt()[:, None]
    _assign(mixing.reads, weights, _padded(root * (left @ U).mT, mixing.size))
    _assign(mixing.writes, weights, _padded(root * (Vh @ right.mT), mixing.size))
    return apart


def _rows(slots: Iterable[Slot], weights: Weights) -> Tensor:
    """Return what all slots hold of each neuron, `(neurons, k)`."""
    return torch.cat([slot.rows(weights) for slot in slots], 1)


def _multiply(slots: Iterable[Slot], weights: Weights, factors: Tensor) -> None:
    """Multiply the rows of each neuron in all slots."""
    for slot in slots:
        slot.multiply(weights, factors.to(weights[slot.name].device))


def _assign(slots: Iterable[Slot], weights: Weights, rows: Tensor) -> None:
    """Replace the rows of all slots by those of one matrix, `(neurons, k)`."""
    begin = 0
    for slot in slots:
        columns = slot.rows(weights).shape[1]
        slot.assign(weights, rows[:, begin : begin + columns])
        begin += columns


def _padded(rows: Tensor, size: int) -> Tensor:
    """Return the rows with rows of zeros below them."""
    return torch.cat([rows, rows.new_zeros(size - len(rows), rows.shape[1])]) if len(rows) < size else rows
