"""Reparametrization-invariant flatness: adaptive trace and eigenvalue, Fisher-Rao norm and radial curvature."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.loss_terms import averaging_shares, class_logits
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.derived import scaled
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.operators.quadratic_form import form_rounding
from lossscope.probes.sharpness.logit_derivative import logit_derivatives
from lossscope.probes.statistics.estimate import Estimate, exact_estimate, rounded_estimate
from lossscope.probes.sums import dot

__all__ = ["adaptive_lambda_max", "adaptive_trace", "log_fisher_rao", "theta_hessian_theta"]


def adaptive_trace(
    target: Objective | SymmetricOperator,
    *,
    parameters: Tensor | None = None,
    max_products: int = 128,
    rel: float = 0.01,
    seed: int = 0,
) -> Estimate:
    r"""Estimate the adaptive trace :math:`\sum_i \theta_i^2 H_{ii}`.

    Under a diagonal map :math:`\theta \to T\theta` that preserves the function, H becomes
    :math:`T^{-1} H T^{-1}`, so :math:`\mathrm{diag}(\theta) H \mathrm{diag}(\theta)` is invariant: with equal seeds
    even the estimate is the same up to rounding. It is :math:`2/\rho^2` times the average increase of the loss under
    small multiplicative noise of size :math:`\rho`.

    Args:
        target: The loss, or its Hessian or another operator `(n, n)`.
        parameters: `(n,)`, required with an operator. Default: the parameters of the objective.
        max_products: Budget of operator products, at least 2.
        rel: Stop when the standard error is below `rel` times the value (or the norm, if that is larger).
        seed: Seed of the random vectors.

    Returns:
        The trace with its 95 % interval; exact if `n` is at most 32.

    Raises:
        ProbeError: The parameters are missing, have the wrong length or are not finite, or the budget is too small.

    Source:
        docs/measures/adaptive_trace.md, after M. Andriushchenko et al. (2023), A modern look at the
        relationship between sharpness and generalization, arXiv:2302.07011.
    """
    found = measure_spectrum(
        _relative(target, parameters, "adaptive_trace"),
        rel=rel,
        max_products=max_products,
        quantities=("trace",),
        seed=seed,
    )
    assert found.trace is not None  # requested above
    return found.trace


def adaptive_lambda_max(
    target: Objective | SymmetricOperator,
    *,
    parameters: Tensor | None = None,
    max_products: int = 128,
    rel: float = 0.01,
    seed: int = 0,
    warm_start: Tensor | None = None,
) -> Estimate:
    r"""Estimate the largest eigenvalue of :math:`\mathrm{diag}(\theta) H \mathrm{diag}(\theta)`.

    It is the curvature along the worst direction in which every weight moves in units of its own size. Under a diagonal
    map that preserves the function it does not change: see `adaptive_trace`, the sum of all these eigenvalues. Both
    together cost little more than one: `measure_spectrum(scaled(hessian(objective), theta))`.

    Args:
        target: The loss, or its Hessian or another operator `(n, n)`.
        parameters: `(n,)`, required with an operator. Default: the parameters of the objective.
        max_products: Budget of operator products, at least 2.
        rel: Stop when the bound is below `rel` times the eigenvalue of largest modulus.
        seed: Seed of the start vector.
        warm_start: `(n,)`, the eigenvector of a similar operator.

    Returns:
        The eigenvalue with the bound of `measure_spectrum`.

    Raises:
        ProbeError: The parameters are missing, have the wrong length or are not finite, or the budget is too small.

    Source:
        docs/measures/adaptive_lambda_max.md; J. Kwon et al. (2021), ASAM, arXiv:2102.11600, for the relative
        perturbation of which it is the limit.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([3.0])):
        ...     adaptive_lambda_max(objective).value
        18.0
    """
    found = measure_spectrum(
        _relative(target, parameters, "adaptive_lambda_max"),
        top=1,
        rel=rel,
        max_products=max_products,
        quantities=("top",),
        seed=seed,
        warm_start=warm_start,
    )
    assert found.top is not None  # requested above
    return replace(found.top.estimate(), products=found.products, seconds=found.seconds)


def _relative(target: Objective | SymmetricOperator, parameters: Tensor | None, name: str) -> SymmetricOperator:
    """Return the operator in coordinates relative to each parameter."""
    if isinstance(target, Objective):
        parameters = target.parameters() if parameters is None else parameters
        target = hessian(target)
    if parameters is None:
        raise ProbeError(f"{name} of an operator requires parameters=...: pass them as a vector (n,)")
    return scaled(target, parameters)


def log_fisher_rao(objective: Objective) -> Estimate:
    r"""Compute the log of the Fisher-Rao norm :math:`\theta^\top F \theta`, with F the Fisher matrix of the model.

    For a softmax over logits z, :math:`\theta^\top F \theta` is the mean over the terms of the loss (weighted as in the
    loss, ignored ones left out) of the variance, under the model's own probabilities, of the derivative
    :math:`u = J\theta` of the logits along the parameters:
    :math:`\sum_c p_c u_c^2 - (\sum_c p_c u_c)^2`. The derivative takes one forward-mode pass per batch (two
    backward passes where a function has no rule for it), so nothing is sampled; on first use one backward pass of the
    first batch confirms it. It is invariant under any linear map of the
    parameters that preserves the function. Only trainable parameters count as :math:`\theta`.

    Args:
        objective: The loss; its `loss_fn` must have `logits(model, batch)`, classes last, as `CrossEntropy` has.

    Returns:
        The logarithm, exact on the fixed data up to the rounding in its interval; nan if the norm is zero.

    Raises:
        ProbeError: The loss has no `logits`, they have no derivative, or the norm is not finite.

    Source:
        T. Liang et al. (2019), Fisher-Rao metric, geometry, and complexity of neural networks, arXiv:1711.01530.
    """
    logits = class_logits(objective.loss_fn)
    if logits is None:
        raise ProbeError(
            f"the Fisher-Rao norm requires a loss with logits, got {objective.loss_kind}: use CrossEntropy(), or "
            "give your loss a method logits(model, batch); all other measures do without"
        )
    begun = time.perf_counter()
    norm = _fisher_rao(objective, logits)
    if not math.isfinite(norm):
        raise ProbeError(f"the Fisher-Rao norm is {norm}: the logits overflow {objective.dtype} at these parameters")
    if not norm > 0:
        return exact_estimate(math.nan, seconds=time.perf_counter() - begun)
    (rounding,) = number_rounding(objective, lambda other: (_fisher_rao(other, logits),), (norm,))
    found = rounded_estimate(norm, rounding, seconds=time.perf_counter() - begun)
    low = math.log(found.low) if found.low > 0 else -math.inf
    return replace(found, value=math.log(norm), low=low, high=math.log(found.high))


def _fisher_rao(objective: Objective, logits: Callable[[Any, Any], Tensor]) -> float:
    """Return the mean over the terms of the loss of the variance of the logits' derivative."""
    with objective.evaluating():
        objective.require_repeatable()
        return _mean_variance(objective, logits)


def _mean_variance(objective: Objective, logits: Callable[[Any, Any], Tensor]) -> float:
    """Return the mean over the terms of the loss; call it inside `evaluating`."""
    call = objective.substitution(logits)
    total = 0.0
    for at, z, u in logit_derivatives(objective, call, objective.parameters()):
        shares = averaging_shares(objective.loss_fn, z, objective.data.batches[at.index])
        total += at.weight * float(_variance(z.double(), u.double()).reshape(-1) @ shares)
    return total


def _variance(logits: Tensor, derivative: Tensor) -> Tensor:
    """Return the variance of the derivative under the softmax of the logits, over the last axis."""
    p = logits.softmax(-1)
    centered = derivative - (p * derivative).sum(-1, keepdim=True)
    return (p * centered.square()).sum(-1)


def theta_hessian_theta(objective: Objective) -> Estimate:
    r"""Compute the radial curvature :math:`\theta^\top H \theta`, along the parameters themselves.

    It is the second derivative of :math:`L(s\theta)` with respect to s at 1, which scales all parameters by one factor.
    Under a linear map T of the parameters that preserves the function, H becomes :math:`T^{-\top} H T^{-1}` and
    :math:`\theta` becomes :math:`T\theta`, so it is invariant.

    Args:
        objective: The loss. Its trainable parameters are :math:`\theta`; frozen ones stay fixed.

    Returns:
        The curvature, exact on the fixed data up to its interval, which contains the rounding of the product. It has
        not converged if that exceeds 1 % of it. Cost: one product, and one in another precision.

    Raises:
        ProbeError: The loss or the product is not finite.

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
    operator = hessian(objective)
    image = operator @ theta
    return rounded_estimate(
        float(dot(theta, image)),
        form_rounding(operator, theta, image),
        products=operator.products,
        seconds=time.perf_counter() - begun,
    )
