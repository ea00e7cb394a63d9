"""Flatness that a rescaling of the network cannot change: adaptive trace and Fisher-Rao norm."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, scaled
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.timing import reason
from lossscope.probes.spectrum.measure import measure_spectrum
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

__all__ = ["adaptive_trace", "log_fisher_rao", "theta_hessian_theta"]


def adaptive_trace(
    target: Objective | SymmetricOperator,
    *,
    parameters: Tensor | None = None,
    max_products: int = 128,
    rel: float = 0.01,
    seed: int = 0,
) -> Estimate:
    r"""The sum of :math:`\theta_i^2 H_{ii}`, the trace of the Hessian in units of the parameters themselves.

    Under a diagonal map :math:`\theta \to T\theta` that leaves the function alone, H becomes
    :math:`T^{-1} H T^{-1}`, so :math:`\mathrm{diag}(\theta) H \mathrm{diag}(\theta)` does not change at
    all: with equal seeds even the estimate is the same up to rounding. It is :math:`2/\rho^2` times the average
    rise of the loss under small multiplicative noise of size :math:`\rho`.

    Args:
        target: The loss, or its Hessian or another operator `(n, n)`.
        parameters: `(n,)`, needed with an operator; with an objective its parameters are taken.
        max_products: The budget, at least 2.
        rel: Stop where the standard error is below `rel` times the value (or the norm, if that is larger).
        seed: Of the random vectors.

    Returns:
        The trace with its 95 % interval; exact where `n` is at most 32.

    Raises:
        ProbeError: the parameters are missing, do not fit or are not finite, or the budget is too small.

    Source:
        docs/measures/adaptive_trace.md, after M. Andriushchenko et al. (2023), A modern look at the
        relationship between sharpness and generalization, arXiv:2302.07011.
    """
    if isinstance(target, Objective):
        parameters = target.parameters() if parameters is None else parameters
        target = hessian(target)
    if parameters is None:
        raise ProbeError("adaptive_trace of an operator needs parameters=...: pass them as a vector (n,)")
    found = measure_spectrum(
        scaled(target, parameters), rel=rel, max_products=max_products, quantities=("trace",), seed=seed
    )
    assert found.trace is not None  # it was asked for
    return found.trace


def log_fisher_rao(objective: Objective) -> Estimate:
    r"""The logarithm of the Fisher-Rao norm :math:`\theta^\top F \theta`, F the Fisher matrix of the model.

    For a softmax over logits z, :math:`\theta^\top F \theta` is the mean over the data of the variance, under the
    model's own probabilities, of the derivative :math:`u = J\theta` of the logits along the parameters:
    :math:`\sum_c p_c u_c^2 - (\sum_c p_c u_c)^2`. The derivative is one forward pass with tangents for each
    batch, so nothing is random. It does not change under any linear map of the parameters that leaves
    the function alone. Only trainable parameters count as :math:`\theta`.

    Args:
        objective: The loss; its `loss_fn` must have `logits(model, batch)`, classes last, as `CrossEntropy` has.

    Returns:
        The logarithm, exact on the fixed data; a gap (nan) where the norm is zero.

    Raises:
        ProbeError: the loss shows no logits, they have no derivative in forward mode, or it is not finite.

    Source:
        T. Liang et al. (2019), Fisher-Rao metric, geometry, and complexity of neural networks, arXiv:1711.01530.
    """
    logits = getattr(objective.loss_fn, "logits", None)
    if logits is None:
        raise ProbeError(
            f"the loss {objective.loss_kind} shows no logits, which the Fisher-Rao norm needs: use CrossEntropy(), or "
            "give your loss a method logits(model, batch)"
        )
    begun = time.perf_counter()
    with objective.evaluating():
        objective.require_repeatable()
        try:
            norm = _fisher_rao(objective, logits)
        except NotImplementedError as error:  # of torch, for a function without a rule
            raise ProbeError(f"the logits have no derivative in forward mode here ({reason(error)})") from error
    if not math.isfinite(norm):
        raise ProbeError(f"the Fisher-Rao norm is {norm}: the logits overflow {objective.dtype} at these parameters")
    return exact_estimate(math.log(norm) if norm > 0 else math.nan, seconds=time.perf_counter() - begun)


def _fisher_rao(objective: Objective, logits: Callable[[Any, Any], Tensor]) -> float:
    """The mean over the data of the variance of the logits' derivative."""
    call = objective.substitution(logits)
    total = 0.0
    # not torch.func.jvp: inside it a module may not update its buffers in place
    with torch.no_grad(), forward_ad.dual_level():
        moving = [forward_ad.make_dual(p, p) for p in objective.copies()]  # type: ignore[no-untyped-call]
        for at in objective.passes():
            z, u = forward_ad.unpack_dual(objective.evaluated(call, moving, at))  # type: ignore[no-untyped-call]
            if u is not None:
                total += at.weight * float(_variance(z.double(), u.double()).mean())
    return total


def _variance(logits: Tensor, derivative: Tensor) -> Tensor:
    """The variance of the derivative under the softmax of the logits, over the last axis."""
    p = logits.softmax(-1)
    centered = derivative - (p * derivative).sum(-1, keepdim=True)
    return (p * centered.square()).sum(-1)


def theta_hessian_theta(objective: Objective) -> Estimate:
    r"""The curvature :math:`\theta^\top H \theta` of the loss along its own parameters.

    It is the second derivative of :math:`L(s\theta)` by s at 1, where all parameters grow by one factor. Under a
    linear map T of the parameters that leaves the function alone, H becomes :math:`T^{-\top} H T^{-1}` and
    :math:`\theta` becomes :math:`T\theta`, so it does not change.

    Args:
        objective: The loss. Its trainable parameters are :math:`\theta`; frozen ones stand where they are.

    Returns:
        The number, exact on the fixed data, for one product.

    Raises:
        ProbeError: the loss or the product is not finite.

    Source:
        docs/measures/radial.md.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(3, 1)])
        >>> with objective.at(torch.tensor([3.0])):
        ...     theta_hessian_theta(objective).value
        18.0
    """
    begun = time.perf_counter()
    theta = objective.parameters()
    curvature = (hessian(objective) @ theta).double() @ theta.double()
    return exact_estimate(float(curvature), products=1, seconds=time.perf_counter() - begun)
