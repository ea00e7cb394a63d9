"""Charges of the rescaling symmetries of a network, which gradient flow conserves, and their change over a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.symmetry import Mixing, Scaling, Slot, Weights
from lossscope.probes.gauge.tracing import symmetries_of

__all__ = ["SymmetryCharges", "symmetry_charges"]


@dataclass(frozen=True)
class SymmetryCharges:
    r"""Charges of all neurons, or dimensions between two linear layers, that can be rescaled.

    Attributes:
        by_layer: Charge :math:`\|w_{in}\|^2 - \|w_{out}\|^2` of each neuron, float64, by the name of its layer.
        imbalance: Sum of their magnitudes over the sum of all squared norms: 0 at the balanced point, at most 1.
        drift: Sum of the magnitudes of their changes over the step, over the same sum; nan without a step.
        breaking: Sum of the magnitudes of :math:`\langle w_{in}, D_{in}\rangle - \langle w_{out}, D_{out}\rangle` over
            that of the products of the norms: 0 for a step along the gradient, at most 1; nan without a step.
        unknown: Layers whose symmetries are not known, in words; a neuron with a frozen weight has none.
    """

    by_layer: dict[str, Tensor]
    imbalance: float
    drift: float
    breaking: float
    unknown: tuple[str, ...]


def symmetry_charges(
    model: nn.Module, *, before: Mapping[str, Tensor] | None = None, displacement: Mapping[str, Tensor] | None = None
) -> SymmetryCharges:
    r"""Compute the charges of the rescaling symmetries of a network, and how a step changes them.

    Where the incoming weights of a neuron may be multiplied by s and the outgoing ones divided by it, the loss does not
    change along :math:`(w_{in}, -w_{out})`, so :math:`\langle w_{in}, g_{in}\rangle = \langle w_{out}, g_{out}\rangle`
    and gradient flow conserves :math:`Q = \|w_{in}\|^2 - \|w_{out}\|^2`. A step D changes it by

    .. math:: 2 (\langle w_{in}, D_{in}\rangle - \langle w_{out}, D_{out}\rangle) + \|D_{in}\|^2 - \|D_{out}\|^2 ,

    of which the first part is zero for any step along a gradient, whatever its batch: gradient descent drifts in second
    order only. Optimizers with another metric (Adam, Muon, weight decay) break the symmetry in first order. Behind a
    normalization that is scaled, its gain and shift are the incoming weights.

    Args:
        model: The network; it is traced as by `balance`.
        before: Parameters before the step, by name. Default: the present ones.
        displacement: Parameters after the step minus before, by name; None for the charges alone.

    Returns:
        The charges of every neuron whose weights all require grad, exact up to rounding. Cost: a trace of the network;
        no loss is evaluated.

    Raises:
        ProbeError: No rescaling symmetry is known, or a weight of one is missing in an argument.

    Source:
        H. Tanaka, D. Kunin (2021), Noether's learning dynamics, arXiv:2105.02716; S. Du, W. Hu, J. Lee (2018),
        Algorithmic regularization in learning deep homogeneous models: layers are automatically balanced,
        arXiv:1806.00900, for the conserved difference.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False))
        >>> for parameter, value in zip(net.parameters(), (2.0, 1.0, 1.0), strict=True):
        ...     _ = parameter.data.fill_(value)
        >>> found = symmetry_charges(net)
        >>> found.by_layer, round(found.imbalance, 4)
        ({'0': tensor([4.], dtype=torch.float64)}, 0.6667)
    """
    found = symmetries_of(model)
    known = [one for one in found.known if isinstance(one, Scaling | Mixing)]
    if not known:
        reason = f": not known are {'; '.join(found.unknown)}" if found.unknown else ""
        raise ProbeError(f"no neuron of this network can be rescaled{reason}")
    present = dict(model.named_parameters()) if before is None else before
    names = {slot.name for one in known for slot in (*_incoming(one), *one.reads)}
    weights = _doubles(present, names, "before")
    step = None if displacement is None else _doubles(displacement, names, "displacement")
    charges, parts = {}, []
    for one in known:
        w_in, w_out = (_rows(slots, weights) for slots in (_incoming(one), one.reads))
        charges[one.name] = w_in.square().sum(1) - w_out.square().sum(1)
        sizes = w_in.square().sum() + w_out.square().sum()
        changes = torch.full((3,), torch.nan, dtype=torch.float64)
        if step is not None:
            changes = _changes(w_in, w_out, *(_rows(slots, step) for slots in (_incoming(one), one.reads)))
        parts.append(torch.cat([torch.stack([charges[one.name].abs().sum(), sizes]), changes]))
    total, size, drift, first, most = torch.stack(parts).sum(0).tolist()
    return SymmetryCharges(charges, _over(total, size), _over(drift, size), _over(first, most), found.unknown)


def _changes(w_in: Tensor, w_out: Tensor, d_in: Tensor, d_out: Tensor) -> Tensor:
    """Return sums over neurons: change of the charge, its first-order part, and the most that this can be."""
    first = (w_in * d_in).sum(1) - (w_out * d_out).sum(1)
    second = d_in.square().sum(1) - d_out.square().sum(1)
    most = w_in.norm(dim=1) * d_in.norm(dim=1) + w_out.norm(dim=1) * d_out.norm(dim=1)
    return torch.stack([(2 * first + second).abs().sum(), first.abs().sum(), most.sum()])


def _incoming(one: Scaling | Mixing) -> tuple[Slot, ...]:
    """Return what scales the neurons: gain and shift of a normalization, or else the weights that write them."""
    return one.gains or one.writes


def _rows(slots: Iterable[Slot], weights: Weights) -> Tensor:
    """Return what all slots hold of each neuron, `(neurons, k)`."""
    return torch.cat([slot.rows(weights) for slot in slots], 1)


def _doubles(tensors: Mapping[str, Tensor], names: Iterable[str], argument: str) -> Weights:
    """Return tensors in float64 on the CPU."""
    missing = sorted({*names} - {*tensors})
    if missing:
        raise ProbeError(f"{argument} must have every weight of the symmetries, {missing[0]!r} is missing")
    return {name: tensors[name].detach().double().cpu().contiguous() for name in names}


def _over(above: float, below: float) -> float:
    return above / below if below else 0.0
