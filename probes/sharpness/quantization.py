"""Loss after the weights are rounded to few bits, one scale for each tensor."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.statistics.estimate import Estimate, rounded_estimate

__all__ = ["quantized_loss"]


def quantized_loss(objective: Objective, bits: int) -> Estimate:
    r"""Compute the loss after rounding every weight tensor to whole multiples of one step.

    .. math:: w \to s \, \mathrm{round}(w / s), \qquad s = \max |w| / (2^{b - 1} - 1)

    The grid is symmetric, so 0 stays 0. Tensors with two or more axes are rounded; biases and gains stay, as is usual
    for networks in few bits. If a tensor is multiplied by a factor so is what it is rounded to, so the number is
    invariant under factors of whole tensors that preserve the function.

    Args:
        objective: The loss, usually on test data. Its trainable parameters are rounded, frozen ones stay.
        bits: b, from 2 (three values) to 16.

    Returns:
        The loss, exact on the fixed data up to the rounding of floating numbers in its interval. Cost: two losses. The
        model is not written.

    Raises:
        ProbeError: bits is out of range, no trainable parameter has two axes, or the loss is not finite.

    Source:
        R. Krishnamoorthi (2018), Quantizing deep convolutional networks for efficient inference, arXiv:1806.08342,
        symmetric quantization of a layer.

    Example:
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.tensor([[1.0, 0.0]])])
        >>> with objective.at(torch.tensor([0.3, 1.0])):
        ...     quantized_loss(objective, 2).value
        0.0
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ProbeError(f"bits must be an integer from 2 to 16, got {bits!r}")
    if not any(part.ndim > 1 for part in objective.vector.tensors()):
        raise ProbeError("no trainable parameter has two or more axes: there is no weight tensor to round")
    begun = time.perf_counter()
    value = objective.value_at(_rounded(objective, bits))
    if not math.isfinite(value):
        raise ProbeError(f"the loss is {value} after rounding to {bits} bits")
    (rounding,) = number_rounding(objective, lambda other: (other.value_at(_rounded(other, bits)),), (value,))
    return rounded_estimate(value, rounding, seconds=time.perf_counter() - begun)


def _rounded(objective: Objective, bits: int) -> Tensor:
    """Return the parameters with the weight tensors rounded, `(n,)`."""
    parts = objective.vector.split(objective.parameters())
    return objective.vector.joined([_on_grid(part, bits) if part.ndim > 1 else part for part in parts])


def _on_grid(weight: Tensor, bits: int) -> Tensor:
    """Return a tensor rounded to whole multiples of a step, of which its largest entry is the last."""
    wide = weight.detach().double()
    largest = float(wide.abs().max()) if wide.numel() else 0.0
    if largest == 0:
        return weight
    step: float = largest / (2 ** (bits - 1) - 1)
    return torch.round(wide / step).mul_(step).to(weight.dtype)
