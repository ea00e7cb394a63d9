"""Stability thresholds: the largest sharpness at which each optimizer is stable."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lossscope.probes.errors import ProbeError

if TYPE_CHECKING:  # reports read thresholds without scipy
    from lossscope.probes.statistics.estimate import Estimate

__all__ = [
    "Evidence",
    "Threshold",
    "batch_sharpness_threshold",
    "edge_ratio",
    "ema_momentum",
    "frozen_adam",
    "gradient_descent",
    "heavy_ball",
    "logged_step",
    "momentum_batch_sharpness_threshold",
    "nesterov",
    "non_euclidean",
    "normalized",
    "sam",
]

Evidence = Literal["theorem", "descent", "empirical"]


@dataclass(frozen=True)
class Threshold:
    """Stability threshold of an optimizer, and the quantity that must stay below it.

    Attributes:
        optimizer: Update rule.
        quantity: Measured quantity that is compared with the threshold.
        value: Threshold, in the unit of the quantity.
        evidence: `theorem`: on a positive definite quadratic the iteration converges below and diverges above.
            `descent`: below, the second-order model of the loss decreases at every step; above, it need not.
            `empirical`: the level at which training was observed to stabilize.
    """

    optimizer: str
    quantity: str
    value: float
    evidence: Evidence


def edge_ratio(quantity: Estimate, threshold: Threshold | float) -> Estimate:
    """Divide a measured quantity by its threshold: a ratio of 1 is the edge of stability.

    Args:
        quantity: Measured quantity, with its error.
        threshold: Threshold, or its value; finite and above 0.

    Returns:
        The dimensionless ratio. Its error is that of the quantity, since the threshold is exact; cost and convergence
        are copied.

    Raises:
        ProbeError: The threshold is not finite or not above 0.

    Example:
        >>> from lossscope.probes.statistics.estimate import exact_estimate
        >>> edge_ratio(exact_estimate(19.0), gradient_descent(lr=0.1)).value
        0.95
    """
    limit = threshold.value if isinstance(threshold, Threshold) else threshold
    if not (math.isfinite(limit) and limit > 0):
        raise ProbeError(f"threshold must be finite and above 0, got {limit:g}")
    return replace(
        quantity,
        value=quantity.value / limit,
        stderr=quantity.stderr / limit,
        low=quantity.low / limit,
        high=quantity.high / limit,
        residual=None if quantity.residual is None else quantity.residual / limit,
    )


def gradient_descent(lr: float, *, coupled_decay: float = 0.0, decoupled_decay: float = 0.0) -> Threshold:
    r"""Return the threshold 2 / lr of gradient descent on :math:`\lambda_{\max}(H)`.

    Along an eigenvector a step multiplies the distance to the minimum by :math:`1 - \eta\lambda`. With weight decay w,
    in the gradient or beside it, the factor is :math:`1 - \eta\lambda - \eta w` and the threshold 2 / lr - w.

    Args:
        lr: Learning rate, finite and above 0.
        coupled_decay: Weight decay added to the gradient (`weight_decay` of torch's SGD and Adam), at least 0.
        decoupled_decay: Weight decay that shrinks the weights beside the step (AdamW), at least 0.

    Returns:
        The threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        J. Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of stability,
        arXiv:2103.00065.
    """
    _check(lr)
    found = Threshold("gradient descent", "lambda_max", 2 / lr, "theorem")
    return _decayed(found, lr, coupled_decay, decoupled_decay)


def heavy_ball(
    lr: float, momentum: float, dampening: float = 0.0, *, coupled_decay: float = 0.0, decoupled_decay: float = 0.0
) -> Threshold:
    r"""Return the threshold 2 (1 + b) / ((1 - d) lr) of torch's momentum on :math:`\lambda_{\max}(H)`.

    With :math:`B \leftarrow b B + (1 - d) g` and :math:`x \leftarrow x - \eta B` an eigendirection has the
    characteristic equation :math:`r^2 - (1 + b - (1 - d)\eta\lambda) r + b = 0`. Since :math:`b < 1`, a root leaves the
    unit circle only at :math:`r = -1`, where :math:`(1 - d)\eta\lambda = 2 (1 + b)`. Weight decay w in the gradient
    adds w to the curvature: the threshold falls by w. Decoupled, :math:`x \leftarrow (1 - \eta w) x - \eta B` has
    :math:`(r - 1 + \eta w)(r - b) + (1 - d)\eta\lambda r = 0`, which at :math:`r = -1` is
    :math:`(1 - d)\eta\lambda = (2 - \eta w)(1 + b)`: the threshold is multiplied by 1 - lr w / 2.

    Args:
        lr: Learning rate, finite and above 0.
        momentum: b, from 0 to below 1.
        dampening: d, from 0 to below 1.
        coupled_decay: Weight decay added to the gradient (`weight_decay` of torch's SGD and Adam), at least 0.
        decoupled_decay: Weight decay that shrinks the weights beside the step (AdamW), at least 0.

    Returns:
        The threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        Derived here; for d = 0, B. Polyak (1964), Some methods of speeding up the convergence of iteration methods.
    """
    _check(lr, momentum=momentum, dampening=dampening)
    found = Threshold("heavy ball", "lambda_max", 2 * (1 + momentum) / ((1 - dampening) * lr), "theorem")
    return _decayed(found, lr, coupled_decay, decoupled_decay)


def ema_momentum(lr: float, beta: float, *, coupled_decay: float = 0.0, decoupled_decay: float = 0.0) -> Threshold:
    """Return the threshold 2 (1 + b) / ((1 - b) lr) of EMA momentum on lambda_max: heavy ball with d = b.

    Args:
        lr: Learning rate, finite and above 0.
        beta: b, from 0 to below 1.
        coupled_decay: Weight decay added to the gradient (`weight_decay` of torch's SGD and Adam), at least 0.
        decoupled_decay: Weight decay that shrinks the weights beside the step (AdamW), at least 0.

    Returns:
        The threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        Derived here, see `heavy_ball`.
    """
    _check(lr, beta=beta)
    found = Threshold("EMA momentum", "lambda_max", 2 * (1 + beta) / ((1 - beta) * lr), "theorem")
    return _decayed(found, lr, coupled_decay, decoupled_decay)


def nesterov(lr: float, momentum: float, *, coupled_decay: float = 0.0, decoupled_decay: float = 0.0) -> Threshold:
    r"""Return the threshold 2 (1 + b) / ((1 + 2 b) lr) of torch's Nesterov momentum on :math:`\lambda_{\max}(H)`.

    With :math:`B \leftarrow b B + g` and :math:`x \leftarrow x - \eta (g + b B)` an eigendirection has the
    characteristic equation :math:`r^2 - (1 + b) s\, r + b s = 0` with :math:`s = 1 - \eta\lambda`; a root first leaves
    the unit circle at :math:`r = -1`, where :math:`s = -1/(1 + 2b)`. Weight decay as for `heavy_ball`.

    Args:
        lr: Learning rate, finite and above 0.
        momentum: b, from 0 to below 1.
        coupled_decay: Weight decay added to the gradient (`weight_decay` of torch's SGD and Adam), at least 0.
        decoupled_decay: Weight decay that shrinks the weights beside the step (AdamW), at least 0.

    Returns:
        The threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        Derived here.
    """
    _check(lr, momentum=momentum)
    found = Threshold("Nesterov", "lambda_max", (2 + 2 * momentum) / ((1 + 2 * momentum) * lr), "theorem")
    return _decayed(found, lr, coupled_decay, decoupled_decay)


def frozen_adam(lr: float, beta1: float, *, coupled_decay: float = 0.0, decoupled_decay: float = 0.0) -> Threshold:
    r"""Return the threshold 2 (1 + b1) / ((1 - b1) lr) of Adam on :math:`\lambda_{\max}(P^{-1/2} H P^{-1/2})`, P fixed.

    In the coordinates :math:`P^{1/2} x` Adam is EMA momentum. For b1 = 0.9 the threshold is 38 / lr.
    `landscape.measures.optimizer_metric` builds P from an optimizer's state. Decoupled weight decay w (AdamW) gives
    (2 / lr - w) (1 + b1) / (1 - b1), as in `heavy_ball`. Decay in the gradient leaves the number and changes what it is
    compared with: the largest eigenvalue of :math:`P^{-1/2} (H + w I) P^{-1/2}`, which is no shift of that of H.

    Args:
        lr: Learning rate, finite and above 0.
        beta1: b1, from 0 to below 1.
        coupled_decay: Weight decay added to the gradient (`weight_decay` of torch's SGD and Adam), at least 0.
        decoupled_decay: Weight decay that shrinks the weights beside the step (AdamW), at least 0.

    Returns:
        The threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        J. Cohen et al. (2022), Adaptive gradient methods at the edge of stability, arXiv:2207.14484.
    """
    _check(lr, beta1=beta1)
    quantity = "preconditioned_sharpness"
    if coupled_decay > 0:
        quantity += f" of H + {coupled_decay:g} I"
    found = Threshold("Adam", quantity, 2 * (1 + beta1) / ((1 - beta1) * lr), "theorem")
    _require_decay(coupled_decay)
    return _decayed(found, lr, 0.0, decoupled_decay)


def sam(lr: float, rho: float, gradient_norm: float) -> Threshold:
    r"""Return the threshold of SAM with one global ball on :math:`\lambda_{\max}(H)`, at the current gradient norm.

    Along an eigenvector the gradient at the ascended point is :math:`\lambda (1 + \rho\lambda/|g|) x`, so the
    iteration with fixed |g| is stable if :math:`\eta\lambda (1 + \rho\lambda/|g|) < 2`, that is for :math:`\lambda`
    below

    .. math:: \frac{|g|}{2\rho}\Bigl(\sqrt{1 + \frac{8\rho}{\eta |g|}} - 1\Bigr)
              = \frac{4}{\eta \bigl(1 + \sqrt{1 + 8\rho/(\eta |g|)}\bigr)},

    which is 2 / lr for rho = 0 and goes to 0 with the gradient: SAM oscillates around a minimum.

    Args:
        lr: Learning rate.
        rho: Radius of the ascent, at least 0.
        gradient_norm: |g| over all parameters, on the training batch; above 0.

    Returns:
        The threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        P. Long and P. Bartlett (2023), Sharpness-aware minimization and the edge of stability, arXiv:2309.12488.
    """
    _check(lr)
    if not (math.isfinite(rho) and rho >= 0):
        raise ProbeError(f"rho must be finite and at least 0, got {rho:g}")
    if not (math.isfinite(gradient_norm) and gradient_norm > 0):
        raise ProbeError(f"gradient_norm must be finite and above 0, got {gradient_norm:g}")
    value = 4 / (lr * (1 + math.sqrt(1 + 8 * rho / (lr * gradient_norm))))
    return Threshold("SAM", "lambda_max", value, "theorem")


def batch_sharpness_threshold(lr: float) -> Threshold:
    """Return the level 2 / lr at which the batch sharpness of plain SGD was observed to stabilize.

    Args:
        lr: Learning rate, finite and above 0.

    Returns:
        The level, as a threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        A. Andreyev and P. Beneventano (2024), Edge of stochastic stability, arXiv:2412.20553.
    """
    _check(lr)
    return Threshold("SGD", "batch_sharpness", 2 / lr, "empirical")


def momentum_batch_sharpness_threshold(lr: float, momentum: float, regime: Literal["small", "large"]) -> Threshold:
    """Return the level at which the batch sharpness of SGD with momentum was observed to stabilize.

    It is 2 (1 - b) / lr for small batches, where gradient noise dominates, and 2 (1 + b) / lr (that of heavy ball) for
    batches close to the full data set; no result is known in between.

    Args:
        lr: Learning rate, finite and above 0.
        momentum: b, from 0 to below 1.
        regime: `small` or `large` batches.

    Returns:
        The level, as a threshold.

    Raises:
        ProbeError: A setting is out of range, or the regime is unknown.

    Source:
        A. Andreyev et al. (2026), Momentum further constrains sharpness at the edge of stochastic stability,
        arXiv:2604.14108.
    """
    _check(lr, momentum=momentum)
    if regime not in ("small", "large"):
        raise ProbeError(f"regime must be one of 'small', 'large', got {regime!r}")
    factor = 1 - momentum if regime == "small" else 1 + momentum
    return Threshold(f"SGD with momentum, {regime} batch", "batch_sharpness", 2 * factor / lr, "empirical")


def non_euclidean(lr: float) -> Threshold:
    r"""Return the threshold 2 / lr of :math:`x \leftarrow x - \eta |g|_* d^*` on the sharpness S in the same norm.

    With :math:`d^* = \arg\max_{|d| \le 1} g^\top d` the second-order model changes by
    :math:`-\eta |g|_*^2 + \tfrac12 \eta^2 |g|_*^2\, d^{*\top} H d^*`, a decrease for every d* if :math:`S < 2/\eta`.

    Args:
        lr: Learning rate, finite and above 0.

    Returns:
        The threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        R. Islamov et al. (2026), Non-Euclidean gradient descent operates at the edge of stability, arXiv:2603.05002.
    """
    _check(lr)
    return Threshold("non-Euclidean gradient descent", "norm_sharpness", 2 / lr, "descent")


def normalized(lr: float) -> Threshold:
    r"""Return the threshold 2 / lr of normalized steps :math:`x \leftarrow x - \eta d^*` on :math:`S / |g|_*`.

    Examples are sign descent (Lion without momentum) in the maximum norm and Muon with an exact polar factor in the
    spectral norm: the second-order model changes by :math:`-\eta |g|_* + \tfrac12 \eta^2 d^{*\top} H d^*`.

    Args:
        lr: Learning rate, finite and above 0.

    Returns:
        The threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        Derived here; Islamov et al. (2026), section 4, observe that network training stabilizes at it.
    """
    _check(lr)
    return Threshold("normalized (sign, Muon)", "norm_sharpness / dual norm of the gradient", 2 / lr, "descent")


def logged_step(lr: float) -> Threshold:
    """Return the threshold 2 / lr of any step D = -lr d on d'Hd / (g'd): the directional edge ratio is below 1.

    Args:
        lr: Learning rate, finite and above 0.

    Returns:
        The threshold.

    Raises:
        ProbeError: A setting is out of range.

    Source:
        Derived in `directional_sharpness`.
    """
    _check(lr)
    return Threshold("any step", "d'Hd / (g'd)", 2 / lr, "descent")


def _decayed(threshold: Threshold, lr: float, coupled: float, decoupled: float) -> Threshold:
    """Return the threshold of an iteration with momentum when its weights decay.

    Raises:
        ProbeError: A decay is out of range, or is so large that the iteration is unstable without curvature.
    """
    _require_decay(coupled)
    _require_decay(decoupled)
    value = threshold.value * (1 - lr * decoupled / 2) - coupled
    if value <= 0:
        raise ProbeError(
            f"weight decay must leave a stable iteration, got coupled_decay={coupled:g}, decoupled_decay={decoupled:g} "
            f"at lr={lr:g}: the weights diverge without any curvature; lower the decay or lr"
        )
    return replace(threshold, value=value)


def _require_decay(decay: float) -> None:
    """Raise if a weight decay is out of range."""
    if not (math.isfinite(decay) and decay >= 0):
        raise ProbeError(f"weight decay must be finite and at least 0, got {decay:g}")


def _check(lr: float, **decays: float) -> None:
    """Raise if a setting is out of range."""
    if not (math.isfinite(lr) and lr > 0):
        raise ProbeError(f"lr must be finite and above 0, got {lr:g}")
    for name, decay in decays.items():
        if not 0 <= decay < 1:
            raise ProbeError(f"{name} must be in [0, 1), got {decay:g}")
