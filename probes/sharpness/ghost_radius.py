"""Softmax ghost radius: the length of a step beyond which the loss of a softmax has no Taylor series along it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.loss_terms import averaging_shares, class_logits
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.sharpness.logit_derivative import logit_derivatives
from lossscope.probes.statistics.estimate import Estimate, exact_estimate, rounded_estimate

__all__ = ["GhostRadius", "softmax_ghost_radius"]

Array: TypeAlias = NDArray[np.float64]

_QUANTILES: Final = (1.0, 0.99, 0.9)


@dataclass(frozen=True)
class GhostRadius:
    """Length of a step in units of the radius of each term of the loss (sample, or token): below 1 it is inside."""

    ratio: Estimate  # largest over the terms of spread / pi: the whole step is inside if it is below 1
    ratio_99: Estimate  # 99 % quantile of the same
    ratio_90: Estimate  # 90 % quantile of the same
    runner_up: Estimate  # largest over the terms of the ratio to the exact radius of correct class and runner-up
    nonlinearity: Estimate  # |z(theta + D) - z - JD| / |JD|: above about 0.1 the others are rough; nan if JD is 0
    spreads: Array  # (N,), spread of the logits' derivative along the step over the classes, of each term
    runner_up_ratios: Array  # (N,), ratio of each term to the exact radius of two classes; nan without class indices


def softmax_ghost_radius(objective: Objective, displacement: Tensor, *, at: Tensor | None = None) -> GhostRadius:
    r"""Compare the length of a step with the radius of convergence of the loss of a softmax along it.

    Along the step D the logits of term i are :math:`z_i + t a_i` to first order, with :math:`a_i = J_i D`. The
    log-sum-exp is analytic but for complex t at which :math:`\sum_c e^{z_c + t a_c}` is zero; no such t is nearer than
    :math:`\pi / \Delta_i`, where :math:`\Delta_i = \max_c a_{ic} - \min_c a_{ic}`. With the whole step as unit the
    ratio is

    .. math:: r = \max_i \Delta_i / \pi

    and for r below 1 the Taylor series of every term converges at the end of the step. For the correct class y and the
    runner-up c alone the nearest zero is known exactly,

    .. math:: \rho_i = \sqrt{(z_y - z_c)^2 + \pi^2} \,/\, |a_y - a_c|,

    which is farther for terms that are far from the boundary, and is the radius itself if there are two classes. All
    numbers depend on the function along the step only, so they are invariant under linear maps of the parameters.

    Args:
        objective: The loss, in mode `eval` or `frozen`; its `loss_fn` must have `logits(model, batch)`, classes last,
            and `labels(batch)`, as `CrossEntropy` has.
        displacement: `(n,)`, D, parameters after the step minus before.
        at: `(n,)`, parameters before the step. Default: the model's current parameters.

    Returns:
        The ratios, exact on the fixed data up to the rounding in their intervals. Cost: two forward passes and one in
        forward mode, and the same once more in another precision. The model is restored bit for bit.

    Raises:
        ProbeError: The loss has no logits or labels, the step is zero or not finite, the mode is `train`, or a number
            is not finite.

    Source:
        Ghosts of softmax (2026), arXiv:2603.13552, equations 13, 14 and 17. The code published with it uses the
        spread of the logits themselves, which is another quantity.

    Example:
        >>> from lossscope.probes.objective.losses import CrossEntropy
        >>> net = torch.nn.Linear(1, 2, bias=False)
        >>> objective = Objective(net, CrossEntropy(), [(torch.ones(1, 1), torch.tensor([0]))])
        >>> found = softmax_ghost_radius(objective, torch.tensor([0.0, math.pi]), at=torch.zeros(2))
        >>> round(found.ratio.value, 6), round(found.runner_up.value, 6), found.nonlinearity.value
        (1.0, 1.0, 0.0)
    """
    logits = _logits(objective)
    D = objective.vector.fitting(displacement)
    _check(objective, D)
    begun = time.perf_counter()
    with objective.at(at) if at is not None else nullcontext():
        terms = _terms(objective, logits, D)
        found = _numbers(terms)
        if not all(math.isfinite(number) for number in found[:3]):
            raise ProbeError(
                "the derivative of the logits along the step is not finite: they overflow at these weights"
            )
        sizes = [terms.size / math.pi] * 4 + [_over(terms.size_moved, terms.length)]
        errors = number_rounding(objective, lambda other: _numbers(_terms(other, logits, D)), found, sizes)
    seconds = time.perf_counter() - begun
    ratio, ratio_99, ratio_90, runner_up, nonlinearity = (
        exact_estimate(number, seconds=seconds)
        if math.isnan(number)
        else rounded_estimate(number, error, seconds=seconds)
        for number, error in zip(found, errors, strict=True)
    )
    return GhostRadius(ratio, ratio_99, ratio_90, runner_up, nonlinearity, terms.spreads, terms.runner_up)


@dataclass(frozen=True)
class _Terms:
    """Numbers of all terms along a step."""

    spreads: Array
    runner_up: Array
    size: float  # largest magnitude of a derivative, of which differences are taken
    size_moved: float  # norm of the logits at both ends of the step, of which differences are taken
    remainder: float  # |z(theta + D) - z - JD|
    length: float  # |JD|


def _terms(objective: Objective, logits: Callable[[Any, Any], Tensor], step: Tensor) -> _Terms:
    """Return the numbers of all terms that the loss averages over."""
    spreads, ratios, sizes, squares = [], [], [0.0], torch.zeros(3, dtype=torch.float64)
    D = objective.vector.fitting(step)
    with objective.evaluating():
        objective.require_repeatable()
        for labels, z, a, moved in _logits_along(objective, logits, D):
            spreads.append(a.amax(-1) - a.amin(-1))
            ratios.append(_runner_up(z, a, labels))
            sizes.append(float(a.abs().amax()) if a.numel() else 0.0)
            parts = (moved - z - a, a, torch.maximum(moved.abs(), z.abs()))
            squares += torch.stack([part.square().sum() for part in parts]).cpu()
    remainder, length, size = squares.sqrt().tolist()
    spread, ratio = (torch.cat(ones).cpu().numpy() for ones in (spreads, ratios))
    return _Terms(spread, ratio, max(sizes), size, remainder, length)


def _logits_along(
    objective: Objective, logits: Callable[[Any, Any], Tensor], step: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield labels, logits, their derivative along the step and the logits after it, `(N, C)` float64, by batch."""
    call, there = objective.substitution(logits), objective.parameters() + step
    for at, z, a in logit_derivatives(objective, call, step):
        batch = objective.data.batches[at.index]
        moved = objective.evaluated(call, objective.moved(there), at).detach()
        shares = averaging_shares(objective.loss_fn, z, batch)
        labels: Tensor = objective.loss_fn.labels(batch)  # type: ignore[attr-defined]
        kept = (shares > 0).to(z.device)
        before, slope, after = (one.double().reshape(-1, z.shape[-1])[kept] for one in (z, a, moved))
        flat = labels.reshape(-1, z.shape[-1]) if labels.is_floating_point() else labels.reshape(-1)
        yield flat.to(z.device)[kept], before, slope, after


def _runner_up(z: Tensor, a: Tensor, labels: Tensor) -> Tensor:
    """Return the step in units of the radius of correct class and largest other one; nan without class indices."""
    if labels.is_floating_point() or z.shape[-1] < 2:
        return torch.full_like(z[:, 0], math.nan)
    right = labels.long()[:, None]
    other = z.scatter(-1, right, -math.inf).argmax(-1, keepdim=True)
    gap, slope = (one.gather(-1, right) - one.gather(-1, other) for one in (z, a))
    return (slope.abs() / (gap.square() + math.pi**2).sqrt())[:, 0]


def _numbers(terms: _Terms) -> list[float]:
    """Return the three quantiles of spread over pi, the largest ratio to the runner-up, and the nonlinearity."""
    quantiles = np.quantile(terms.spreads / math.pi, _QUANTILES)
    return [*quantiles.tolist(), float(terms.runner_up.max()), _over(terms.remainder, terms.length)]


def _over(above: float, below: float) -> float:
    return above / below if below else math.nan


def _logits(objective: Objective) -> Callable[[Any, Any], Tensor]:
    """Return the function that gives the logits."""
    logits = class_logits(objective.loss_fn)
    if logits is None or not hasattr(objective.loss_fn, "labels"):
        raise ProbeError(
            f"the ghost radius requires a loss with logits and labels, got {objective.loss_kind}: use CrossEntropy(), "
            "or give your loss methods logits(model, batch) and labels(batch)"
        )
    return logits


def _check(objective: Objective, step: Tensor) -> None:
    """Raise unless the step moves finite weights along a line."""
    if not bool(torch.isfinite(step).all()):
        raise ProbeError("displacement must be finite, got nan or inf: the optimizer step itself failed")
    if not bool(step.any()):
        raise ProbeError("displacement must not be zero: there is no direction along which a radius is taken")
    if objective.mode == "train":
        raise ProbeError(
            "the ghost radius requires mode 'eval' or 'frozen', got 'train', where buffers move on the way"
        )
