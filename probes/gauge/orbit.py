"""Rescalings of a network that keep its function, as factors of single parameters, and the least weighted sum."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.copying import copied
from lossscope.probes.gauge.folding import ConstantFold
from lossscope.probes.gauge.symmetry import Scaling, Shift, Slot
from lossscope.probes.gauge.tracing import symmetries_of

__all__ = ["RescalingOrbit"]

_CONVERGED: Final = (
    1e-6  # largest logarithm of a factor by which a sweep still moves a neuron; the sum knows its square
)
_SWEEPS: Final = 400


class RescalingOrbit:
    r"""All rescalings of a network by positive factors: one for each neuron, or for each space between linear layers.

    A factor :math:`e^x` multiplies the weights into a neuron and divides those out of it, so every parameter is
    multiplied by :math:`e^{x_w - x_r}`, with w the neuron that it writes and r the one that it reads; those on no such
    side have the index 0, whose logarithm is 0. In a space between linear layers any basis would do, so only a factor
    of all of it is meant.

    Args:
        model: The network, of which a copy is traced; fold its gains first, see `balance`.
        names: Names of the parameters, whose entries in this order are the coordinates.

    Attributes:
        size: Number of factors.
        unknown: Layers whose rescalings are not known, in words.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        found, parameters = symmetries_of(copied(model)), dict(model.named_parameters())
        gains = [one.words for one in found.folds if not isinstance(one, ConstantFold)]
        self.unknown, self.size = (*found.unknown, *(f"{one} (fold it by balance(model))" for one in gains)), 0
        self._words = [""]  # name of the layer of each factor
        sides = [{name: torch.zeros(parameters[name].shape, dtype=torch.int64) for name in names} for _ in range(2)]
        for one in found.known:
            if isinstance(one, Shift):
                continue
            count = one.size if isinstance(one, Scaling) else 1
            places = torch.arange(self.size + 1, self.size + count + 1).expand(one.size)
            for slots, indices in zip((one.writes, one.reads), sides, strict=True):
                for slot in slots:
                    _index(slot, indices, places)
            self.size += count
            self._words += [one.name] * count
        self.writes, self.reads = (torch.cat([one.reshape(-1) for one in side.values()]) for side in sides)

    def name(self, factor: int) -> str:
        """Return the name of the layer that a factor belongs to, from 1 on."""
        return self._words[factor]

    def logarithms(self, x: Tensor) -> Tensor:
        """Return the logarithms of the factors of all parameters, `(n,)`, for those of the neurons, `(size + 1,)`."""
        return x[self.writes] - x[self.reads]

    def sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over the parameters into and out of each neuron, `(size + 1,)`; the first is of no neuron."""
        return tuple(  # type: ignore[return-value]
            torch.bincount(side, values, minlength=self.size + 1).double() for side in (self.writes, self.reads)
        )

    def least(self, values: Tensor, slack: Tensor) -> Tensor:
        r"""Return the logarithms x at the minimum of :math:`\sum_e h_e e^{2 x_r - 2 x_w}`, the trace of a diagonal h.

        At the minimum the sums into and out of each neuron are equal.

        Args:
            values: h, `(n,)` float64 on the CPU.
            slack: `(2, size + 1)`, numbers added to the sums into and out of each neuron at x = 0. Their errors
                keep a neuron of which nothing is known from any large factor. A sum below 0 counts as 0.

        Returns:
            `(size + 1,)`; the first is 0.
        """
        pairs, groups = torch.unique(self.writes * (self.size + 1) + self.reads, return_inverse=True)
        sums = torch.bincount(groups, values, minlength=len(pairs))
        writes, reads = pairs // (self.size + 1), pairs % (self.size + 1)
        x = torch.zeros(self.size + 1, dtype=torch.float64)
        for _ in range(_SWEEPS):
            terms = sums * (2 * (x[reads] - x[writes])).exp()
            into, out = (torch.bincount(side, terms, minlength=self.size + 1) for side in (writes, reads))
            into = into.clamp(min=0) + slack[0] * (-2 * x).exp()
            out = out.clamp(min=0) + slack[1] * (2 * x).exp()
            known = (into > 0) & (out > 0)
            known[0] = False
            change = torch.where(known, (into / out).where(known, 1.0).log() / 8, 0.0)  # half of what each needs alone
            x = x + change
            if float(change.abs().max()) <= _CONVERGED:
                break
        return x


def _index(slot: Slot, indices: dict[str, Tensor], places: Tensor) -> None:
    """Write the index of the factor of each row into those of the parameters."""
    if slot.name not in indices:
        raise ProbeError(f"{slot.name} can be rescaled and is not among the parameters: name all trainable ones")
    view = slot.of(indices)
    if bool((view != 0).any()):
        raise ProbeError("a weight belongs to two layers of neurons on one side: report this network")
    view.copy_(places.reshape(*view.shape[: slot.lead], *[1] * (view.ndim - slot.lead)).expand_as(view))
