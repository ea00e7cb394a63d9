"""The metric that an optimizer steps in, read off its state, and the curvature at which it becomes unstable there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.optimizer import ARS2Neo, RuleOptimizer, TwoPassOptimizer
from lossscope.optimizer.update.adam import apply_step
from lossscope.optimizer.update.matrix_view import track_of
from lossscope.optimizer.update.rules import RULES
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.stability_thresholds import frozen_adam, heavy_ball, nesterov

__all__ = ["StepMetric", "optimizer_name", "step_metric", "takes_second_gradient"]


def takes_second_gradient(optimizer: Optimizer) -> bool:
    """Whether some of its steps take a second gradient, at ascended weights.

    Args:
        optimizer: Any.

    Returns:
        True where the mode is not `base` and some radius is above 0; False for an optimizer that is not of ours.
    """
    if not isinstance(optimizer, TwoPassOptimizer):
        return False
    groups = optimizer.param_groups
    return bool(groups[0]["mode"] != "base" and any(group["rho"] > 0 for group in groups))


def optimizer_name(optimizer: Optimizer) -> str:
    """The optimizer's class, or what it does where the class does not tell: `muon`, `sgd+sam`, `adamw+gsam`.

    A `RuleOptimizer` is called after its rule, with the ascent behind a plus where there is one: runs of two rules are
    two arms, and a checkpoint's optimizer can be made again from this name and its state.

    Args:
        optimizer: Any.

    Returns:
        The name.
    """
    if type(optimizer) is not RuleOptimizer:
        return type(optimizer).__name__
    if not takes_second_gradient(optimizer):
        return optimizer.rule
    first = optimizer.param_groups[0]
    ascent = first["perturbation"] if first["surrogate"] == "adversarial" else first["surrogate"]
    return f"{optimizer.rule}+{ascent}"


@dataclass(frozen=True)
class StepMetric:
    """A diagonal metric P and the threshold of the largest eigenvalue of the Hessian in it.

    Attributes:
        name: What the optimizer is called, see `optimizer_name`.
        quantity: `lambda_max` of the Hessian where P is a multiple of the identity, else
            `preconditioned_sharpness`, the largest eigenvalue of `preconditioned(hessian, diagonal)`.
        diagonal: `(n,)` float64 in the order of the objective's names, above 0: P; None for `lambda_max`.
        threshold: Where the quantity reaches it the frozen iteration becomes unstable; None where no such
            number is known (orthogonalized steps, ascents): read R_dir there.
    """

    name: str
    quantity: Literal["lambda_max", "preconditioned_sharpness"]
    diagonal: Tensor | None
    threshold: float | None


@dataclass(frozen=True)
class _CoordinateThreshold:
    """What the coordinates of one parameter bear: `metric * line - decay` is the curvature each is stable up to."""

    metric: Tensor | None  # P of the parameter's shape, None for the identity
    line: float  # the threshold of lambda_max(P^-1 H) at the settings of its group
    decay: float  # weight decay that enters through the gradient, and so adds to the curvature


def step_metric(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], objective: Objective
) -> StepMetric | None:
    r"""The metric of the step the optimizer took last, and the threshold of the sharpness in it.

    **Adam.** With :math:`m \leftarrow \beta_1 m + (1 - \beta_1) g` torch steps by
    :math:`-\eta\,\frac{m}{1 - \beta_1^t} \big/ \bigl(\sqrt{v / (1 - \beta_2^t)} + \epsilon\bigr) = -\eta P^{-1} m` with

    .. math:: P = (1 - \beta_1^t) \bigl(\sqrt{v / (1 - \beta_2^t)} + \epsilon\bigr),

    which is EMA momentum in the metric P, with no bias correction left over. Held fixed, it is unstable
    from :math:`\lambda_{\max}(P^{-1} H) = 2 (1 + \beta_1) / ((1 - \beta_1) \eta)` on.

    **Several groups.** Let a coordinate i alone be stable up to the curvature :math:`T_i` (for Adam
    :math:`P_i` times the threshold at the settings of its group). A frozen iteration with momentum is
    :math:`M (r - 1)(r - b) x + r H x = 0` with diagonal M and b, and an :math:`|r| > 1` exists exactly where
    :math:`x^\top H x > x^\top T x` for some x, :math:`T = 2 (1 + b) M`. So for any mixture of learning rates, betas and
    weight decays the edge is :math:`\lambda_{\max}(T^{-1} H) = 1`. What is returned is T in units of one threshold t,
    that of the objective's first parameter: `diagonal` T / t and `threshold` t. With one group
    this is the P and the threshold of the textbook; the edge ratio does not depend on the choice.

    **Weight decay** w: decoupled, :math:`T_i` becomes :math:`(1 - \eta w / 2) T_i`; through the gradient,
    :math:`T_i - w`. Both are exact.

    **ARS2-Neo.** Its orthogonalized step is no metric, so only the whitening :math:`\sqrt{\hat v} + \epsilon` is
    returned, without a threshold. Without orthogonalization (`adamw@rms`) each matrix takes Adam's step times a factor,
    which divides its P.

    **Relatives.** The rules `adamw` and `sgd` are AdamW and SGD as above: adamw's decay is decoupled, sgd's goes
    through the gradient. The others orthogonalize: their whitening is returned where every coordinate has a
    second moment (`rmsuon`, `muon@rms`), else nothing. With an ascent the step follows the gradient of
    another point, so no rule has a threshold.

    Args:
        optimizer: `torch.optim.SGD`, `Adam` or `AdamW`, or `ARS2Neo` or `RuleOptimizer` in any mode.
        parameters: The parameters of the model by name, as `dict(model.named_parameters())` has them.
        objective: Says which parameters are the coordinates, and in which order.

    Returns:
        The metric; None where the optimizer is another, of a class of the user's own, goes uphill (`maximize`), or has
        neither a threshold nor a whitening.

    Raises:
        ProbeError: a parameter is in no group or has no state yet, or the metric is not finite or not above 0.

    Source:
        J. Cohen et al. (2022), Adaptive gradient methods at the edge of stability, arXiv:2207.14484, for Adam; the
        mixture of groups is derived in docs/measures/preconditioned_sharpness.md.
    """
    if type(optimizer) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, ARS2Neo, RuleOptimizer):
        return None
    if any(group.get("maximize") for group in optimizer.param_groups):
        return None
    name = optimizer_name(optimizer)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    found = []
    for label in objective.names:
        p = parameters.get(label)
        if p is None or p not in groups:
            raise ProbeError(
                f"parameter {label} is in no group of the {name}: the metric it is stepped in is not known"
            )
        found.append((label, p, groups[p]))
    steps = {_step_of(optimizer, group, p) for _, p, group in found}
    if "orthogonal" in steps or takes_second_gradient(optimizer):
        if not all(_whitens(optimizer, group, p) for _, p, group in found):
            return None
        diagonal = torch.cat([_whitening(optimizer, *entry)[0].flatten() for entry in found])
        return StepMetric(name, "preconditioned_sharpness", _sound(diagonal, name), None)
    bears = [_bears(optimizer, *entry) for entry in found]
    return _in_units_of_one_threshold(name, bears, [p for _, p, _ in found])


def _in_units_of_one_threshold(
    name: str, bears: list[_CoordinateThreshold], parameters: list[nn.Parameter]
) -> StepMetric:
    """What the coordinates bear, as one number where it is one, else as a metric with a threshold."""
    lines = {b.line - b.decay for b in bears}
    if len(lines) == 1 and all(b.metric is None for b in bears):
        (line,) = lines
        return StepMetric(name, "lambda_max", None, float(_sound(torch.tensor(line, dtype=torch.float64), name)))
    unit = bears[0].line
    parts = [
        (b.metric if b.metric is not None else torch.ones_like(p, dtype=torch.float64)) * (b.line / unit)
        - b.decay / unit
        for b, p in zip(bears, parameters, strict=True)
    ]
    diagonal = torch.cat([part.detach().flatten() for part in parts])
    return StepMetric(name, "preconditioned_sharpness", _sound(diagonal, name), unit)


def _bears(optimizer: Optimizer, label: str, p: nn.Parameter, group: dict[str, Any]) -> _CoordinateThreshold:
    """What the coordinates of a parameter bear at the settings of its group."""
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    if _step_of(optimizer, group, p) == "sgd":
        rule = nesterov(lr, group["momentum"]) if group["nesterov"] else heavy_ball(lr, *_inertia(group))
        return _CoordinateThreshold(None, rule.value, decay)
    whitening, first = _whitening(optimizer, label, p, group)
    line = frozen_adam(lr, float(group["betas"][0])).value
    metric = first * whitening
    if isinstance(optimizer, ARS2Neo):
        metric = metric / _step_factor(optimizer.state[p]["exp_avg"] / metric, group, p)
    if isinstance(optimizer, TwoPassOptimizer) or group["decoupled_weight_decay"]:
        return _CoordinateThreshold(metric, line * (1 - lr * decay / 2), 0.0)
    return _CoordinateThreshold(metric, line, decay)


def _inertia(group: dict[str, Any]) -> tuple[float, float]:
    """Momentum and dampening; torch does not read the dampening where there is no momentum, and ours has none."""
    return (float(group["momentum"]), float(group.get("dampening", 0.0))) if group["momentum"] else (0.0, 0.0)


def _whitening(optimizer: Optimizer, label: str, p: nn.Parameter, group: dict[str, Any]) -> tuple[Tensor, float]:
    """The denominator `sqrt(v_hat) + eps` of a parameter's last step, in float64, and `1 - beta1^t`."""
    state = optimizer.state.get(p) or {}
    if "exp_avg_sq" not in state:
        raise ProbeError(
            f"parameter {label} has no second moment in the {optimizer_name(optimizer)} yet: the metric is known after "
            "the first step in which it has a gradient"
        )
    v = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    t, betas = float(state["step"]), [float(beta) for beta in group["betas"]]
    return (v.double() / (1 - betas[1] ** t)).sqrt() + group["eps"], 1 - betas[0] ** t


def _step_factor(A: Tensor, group: dict[str, Any], p: nn.Parameter) -> Tensor | float:
    """By how much the last step of a matrix was longer than lr A."""
    if track_of(group, p) == "vector":
        return 1.0
    taken = apply_step(group, torch.zeros_like(p), A.to(p.dtype))
    return taken.scale.double() if isinstance(taken.scale, Tensor) else taken.scale


def _step_of(optimizer: Optimizer, group: dict[str, Any], p: nn.Parameter) -> Literal["sgd", "adam", "orthogonal"]:
    """What a parameter's step is: along its gradients, along Adam's direction, or along an orthogonal factor."""
    if isinstance(optimizer, RuleOptimizer):
        if optimizer.rule == "sgd":
            return "sgd"
        return "adam" if optimizer.rule == "adamw" or track_of(group, p) == "vector" else "orthogonal"
    if isinstance(optimizer, ARS2Neo):
        return "orthogonal" if group["orthogonalize"] and track_of(group, p) == "matrix" else "adam"
    return "sgd" if isinstance(optimizer, torch.optim.SGD) else "adam"


def _whitens(optimizer: Optimizer, group: dict[str, Any], p: nn.Parameter) -> bool:
    """Whether the optimizer keeps a second moment of the parameter once it has stepped it."""
    if not isinstance(optimizer, RuleOptimizer):
        return not isinstance(optimizer, torch.optim.SGD)
    return _step_of(optimizer, group, p) == "adam" or "exp_avg_sq" in RULES[optimizer.rule].state


def _sound(values: Tensor, name: str) -> Tensor:
    """The values, once they are known to be finite and above 0."""
    low, high = float(values.min()), float(values.max())
    if not (low > 0 and high < float("inf")):
        raise ProbeError(
            f"the metric of the {name} runs from {low:g} to {high:g}, need finite numbers above 0: eps is 0 where a "
            "gradient never was, or weight decay alone is beyond the edge"
        )
    return values
