"""Random rescaling of a network's neurons that keeps its function."""

from __future__ import annotations

import torch
from torch import nn

from lossscope.probes.gauge.balancing import random_scaling
from lossscope.probes.gauge.copying import changed_copy, copied
from lossscope.probes.gauge.folding import GainFold
from lossscope.probes.gauge.symmetry import Scaling
from lossscope.probes.gauge.tracing import symmetries_of

__all__ = ["rescaled"]


def rescaled(model: nn.Module, seed: int) -> nn.Module:
    r"""Return a network of the same function whose neurons are rescaled by log-normal factors, one for each neuron.

    The incoming weights and bias of a neuron are multiplied by :math:`s = e^z` with standard normal z and its outgoing
    weights divided by s, for all neurons that `balance` knows. A measure that claims to depend on the function alone
    must not move; raw curvature does.

    Args:
        model: The network; it is unchanged.
        seed: Seed of the factors, which do not depend on the device.

    Returns:
        The new network; an equal copy where no symmetry is known.

    Raises:
        ProbeError: A weight that must change is neither float32 nor float64, or the network cannot be copied.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> x = torch.ones(1, 2)
        >>> bool(torch.allclose(rescaled(net, 0)(x), net(x), rtol=1e-4, atol=1e-6))
        True
    """
    other = copied(model)
    found = symmetries_of(other)
    gains = [
        Scaling(one.name, one.reads[0].shape[1], one.gains, one.reads)
        for one in found.folds
        if isinstance(one, GainFold)
    ]
    known = (*found.known, *gains)
    generator = torch.Generator().manual_seed(seed)
    changed_copy(other, known, lambda weights: random_scaling(known, weights, generator))
    return other
