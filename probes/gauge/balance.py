"""Balanced point of a network: the same function at the weights that no rescaling of neurons can move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.balancing import least_norm
from lossscope.probes.gauge.copying import changed_copy, copied, outputs_apart, require_precise
from lossscope.probes.gauge.tracing import symmetries_of

__all__ = ["Balanced", "balance"]

_ERROR: Final = 1e-5  # largest relative difference of the outputs


@dataclass(frozen=True)
class Balanced:
    """A network at its balanced point.

    Attributes:
        model: A new network of the same function in eval mode.
        fixed: The symmetries that were fixed, in words.
        unknown: Layers whose symmetries are not known, in words; where it is empty, the point is fully fixed.
        logit_error: Largest difference of the outputs from those of the given network, relative to the largest of
            them; nan without a batch.
    """

    model: nn.Module
    fixed: tuple[str, ...]
    unknown: tuple[str, ...]
    logit_error: float


def balance(model: nn.Module, *, batch: Any = None) -> Balanced:
    r"""Return the network of the same function with the least norm of its weights.

    A neuron of a positively homogeneous activation (ReLU, leaky ReLU) can be rescaled: its incoming weights and bias
    times s, its outgoing weights divided by s. Raw curvature changes with s at will; at the balanced point
    :math:`\|(w_{in}, b)\| = \|w_{out}\|` for each neuron, which is unique, so numbers measured there depend on the
    function alone. Between two linear layers the symmetry is any invertible matrix, and the point is the balanced
    factorization of their product by singular values. A neuron with nothing on one side is set to zero, the limit of
    the least norm. After a smooth activation (tanh, GELU) there is no such symmetry and nothing to fix, so that layer
    is not unknown.

    A batch norm right behind a linear layer is one affine map with it in eval mode: its gain goes into the layer, and
    so does its shift where the layer has a bias. A gain that only linear layers read goes into them. Folded gains stay
    as constants 1 and 0 that do not require grad, so the new network has fewer free parameters. Before ReLU, the gain
    and shift of a layer or group norm are the incoming weights of a neuron.

    Outputs that are added, as by skip connections, share one scale or one basis. In each head of attention without
    rotary positions, queries with keys and values with outputs become balanced factors of their products by singular
    values. A constant part of linear features, such as a bias between two linear layers, moves into the biases behind
    it, or is shared by the summands in which it can be.

    Weights without effect, as what no layer behind a sum can read of a summand, have no such point and are unknown.
    Where features meet tied weights, a layer or group norm (which ignores their scale but for its eps, so that no point
    has the least norm), or a function that is not known to keep positive factors, the symmetries are listed as unknown:
    numbers at that point may still depend on them. A network may declare what no trace shows: `weight_symmetries()`,
    a method that returns a list of `Scaling`, `Mixing` and `Shift` (`lossscope.probes.gauge.symmetry`), is then taken
    in place of a trace, and the outputs are compared.

    Args:
        model: The network; it is unchanged. Symmetries are those of its trainable parameters in eval mode.
        batch: Inputs, or a tuple that starts with them, on which both networks must agree. Default: they are not
            evaluated, and the structure of the network alone is relied on.

    Returns:
        The new network, with the names, dtypes, devices, modes and `requires_grad` of the given one, but for
        folded gains, and no gradients.

    Raises:
        ProbeError: The outputs differ by more than 1e-5 of the largest, a weight that must change is neither float32
            nor float64 or is not finite, or the network cannot be copied.

    Source:
        docs/measures/balance.md, after B. Neyshabur et al. (2015), Path-SGD, arXiv:1506.02617, for the symmetry, and
        P. Stock et al. (2019), Equi-normalization of neural networks, arXiv:1902.10416, for the point.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.fill_(8.0), net[2].weight.fill_(0.5)
        >>> [p.item() for p in balance(net).model.parameters()]
        [2.0, 2.0]
    """
    other = copied(model)
    found = symmetries_of(other, tuple(batch) if isinstance(batch, Mapping) else ())
    require_precise(dict(other.named_parameters()), (name for fold in found.folds for name in fold.parameters))
    for fold in found.folds:
        fold.apply(other)
    changed_copy(other, found.known, lambda weights: least_norm(found.known, weights))
    error = math.nan if batch is None else outputs_apart(model, other, batch) if found.known or found.folds else 0.0
    if error > _ERROR or (batch is not None and math.isnan(error)):
        raise ProbeError(
            f"the balanced network differs from the given one by {error:.1e} of its largest output, which is more than "
            f"{_ERROR:g}: convert both model and data to float64, or report this network as one it cannot balance"
        )
    return Balanced(other, tuple(one.words for one in (*found.folds, *found.known)), found.unknown, error)
