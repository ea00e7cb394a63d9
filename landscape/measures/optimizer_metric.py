"""Metric of an optimizer's step, computed from its state, and the stability threshold in that metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lossscope.optimizer import ARS2Neo, Direction, Rule, RuleOptimizer, TwoPassOptimizer
from lossscope.optimizer.update.adam import apply_step
from lossscope.optimizer.update.matrix_view import track_of
from lossscope.optimizer.update.rules import ADAMW, SGD
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.stability_thresholds import Threshold, frozen_adam, heavy_ball, nesterov

__all__ = ["StepMetric", "optimizer_name", "step_metric", "takes_second_gradient", "why_no_metric"]

_Stepped: TypeAlias = tuple[str, nn.Parameter, dict[str, Any]]  # name, parameter, and its group in the step
_WITH_THRESHOLD: Final = (Direction.GRADIENT, Direction.ADAM)
# The optimizers of torch whose step is known, as the rules that they share with ours.
_OF_TORCH: Final[dict[type[Optimizer], Rule]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: replace(ADAMW, decoupled_decay=False),
    torch.optim.AdamW: ADAMW,
}


def takes_second_gradient(optimizer: Optimizer) -> bool:
    """Return True if some steps of the optimizer take a second gradient at ascended weights.

    Args:
        optimizer: Any optimizer.

    Returns:
        True if the mode is not `base` and some radius is above 0; False for optimizers of other packages.
    """
    return isinstance(optimizer, TwoPassOptimizer) and optimizer.takes_second_gradient


def optimizer_name(optimizer: Optimizer) -> str:
    """Return the optimizer's class, or its rule and ascent where the class is shared: `muon`, `sgd+sam`, `adamw+gsam`.

    A `RuleOptimizer` is named after its rule, followed by a plus and the ascent if there is one, so that runs of two
    rules are two arms.

    Args:
        optimizer: Any optimizer.

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


def why_no_metric(optimizer: Optimizer) -> str:
    """Return the reason why `step_metric` gives no metric for an optimizer, for the list of missing values.

    Args:
        optimizer: An optimizer for which `step_metric` returned None.

    Returns:
        A clause that names the optimizer.
    """
    name = optimizer_name(optimizer)
    if any(group.get("maximize") for group in optimizer.param_groups):
        return f"the {name} maximizes, and no metric of ascent is known"
    if isinstance(optimizer, TwoPassOptimizer) and optimizer.declared.direction is Direction.SIGN:
        return (
            f"the {name} takes sign steps, which no diagonal metric describes; without momentum their known threshold "
            "is 2 / lr on the sharpness in the maximum norm over the 1-norm of the gradient, which is not measured here"
        )
    return f"the metric of the {name} is not known"


@dataclass(frozen=True)
class StepMetric:
    """A diagonal metric P and the threshold of the largest eigenvalue of the Hessian in it.

    Attributes:
        name: Name of the optimizer, see `optimizer_name`.
        quantity: `lambda_max` of the Hessian if P is a multiple of the identity, else
            `preconditioned_sharpness`, the largest eigenvalue of `preconditioned(hessian, diagonal)`.
        diagonal: `(n,)` float64 in the order of the objective's names, above 0: P; None for `lambda_max`.
        threshold: Value of the quantity above which the frozen iteration is unstable; None if no such value
            is known (orthogonalized steps, ascents): use the directional edge ratio instead.
        no_threshold: The reason for this if it is that of the present step alone; else "".
    """

    name: str
    quantity: Literal["lambda_max", "preconditioned_sharpness"]
    diagonal: Tensor | None
    threshold: float | None
    no_threshold: str = ""


@dataclass(frozen=True)
class _CoordinateThreshold:
    """Stability threshold of each coordinate of one parameter: `metric * threshold - decay`."""

    metric: Tensor | None  # P of the parameter's shape, None for the identity
    threshold: float  # threshold of lambda_max(P^-1 H) at the settings of its group
    decay: float  # weight decay that enters through the gradient, and so adds to the curvature


def step_metric(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    objective: Objective,
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> StepMetric | None:
    r"""Return the metric of the optimizer's last step, and the threshold of the sharpness in it.

    **Adam.** With :math:`m \leftarrow \beta_1 m + (1 - \beta_1) g` torch steps by
    :math:`-\eta\,\frac{m}{1 - \beta_1^t} \big/ \bigl(\sqrt{v / (1 - \beta_2^t)} + \epsilon\bigr) = -\eta P^{-1} m` with

    .. math:: P = (1 - \beta_1^t) \bigl(\sqrt{v / (1 - \beta_2^t)} + \epsilon\bigr),

    which is EMA momentum in the metric P, without a remaining bias correction. With P fixed it is unstable
    above :math:`\lambda_{\max}(P^{-1} H) = 2 (1 + \beta_1) / ((1 - \beta_1) \eta)`.

    **Several groups.** Let a single coordinate i be stable up to the curvature :math:`T_i` (for Adam
    :math:`P_i` times the threshold at the settings of its group). A frozen iteration with momentum is
    :math:`M (r - 1)(r - b) x + r H x = 0` with diagonal M and b, and a root with :math:`|r| > 1` exists if and only if
    :math:`x^\top H x > x^\top T x` for some x, :math:`T = 2 (1 + b) M`. For any mixture of learning rates, betas and
    weight decays the edge of stability is therefore :math:`\lambda_{\max}(T^{-1} H) = 1`. The result is T in units of
    the threshold t of the objective's first parameter: `diagonal` is T / t and `threshold` is t. With one group
    these are the textbook's P and threshold; the edge ratio does not depend on the choice of t.

    **Weight decay** w: decoupled, :math:`T_i` becomes :math:`(1 - \eta w / 2) T_i`; through the gradient,
    :math:`T_i - w`. Both are exact.

    **ARS2-Neo.** No metric describes its orthogonalized step, so only the whitening :math:`\sqrt{\hat v} + \epsilon` is
    returned, without a threshold. Without orthogonalization (`adamw@rms`) each matrix takes Adam's step times a factor,
    which divides its P.

    **Rules.** The step of a `RuleOptimizer` is read from the declaration of its rule (`Direction`, `adam_moments`,
    `decoupled_decay`). A rule that steps along the gradient or along Adam's direction has the metric of SGD or Adam.
    For other rules the whitening is returned if every coordinate has a second moment (`rmsuon`, `muon@rms`), else
    nothing. No diagonal metric describes a sign step. With an ascent the step uses the gradient at another point, so
    no rule has a threshold.

    Args:
        optimizer: `torch.optim.SGD`, `Adam` or `AdamW`, or `ARS2Neo` or `RuleOptimizer` in any mode.
        parameters: The parameters of the model by name: `dict(model.named_parameters())`.
        objective: Gives the parameters that are the coordinates, and their order.
        groups: Parameter groups with the settings that the step used. Default: those that the optimizer has now, which
            a scheduler may have changed since.

    Returns:
        The metric; None if the optimizer is of another class, ascends the loss (`maximize`), or has neither a
        threshold nor a whitening: see `why_no_metric`.

    Raises:
        ProbeError: A parameter is in no group or has no state yet, or the metric is not finite and above 0.

    Source:
        J. Cohen et al. (2022), Adaptive gradient methods at the edge of stability, arXiv:2207.14484, for Adam; the
        mixture of groups is derived in docs/measures/preconditioned_sharpness.md.
    """
    if type(optimizer) not in (*_OF_TORCH, ARS2Neo, RuleOptimizer):
        return None
    if any(group.get("maximize") for group in optimizer.param_groups):
        return None
    name = optimizer_name(optimizer)
    found = _with_groups(objective.names, parameters, groups or optimizer.param_groups, name)
    rules = [_rule_of(optimizer, group, p) for _, p, group in found]
    if takes_second_gradient(optimizer) or not all(rule.direction in _WITH_THRESHOLD for rule in rules):
        if not all(rule.adam_moments for rule in rules):
            return None
        diagonal = torch.cat([_whitening(optimizer, *entry)[0].flatten() for entry in found])
        return StepMetric(name, "preconditioned_sharpness", _validated(diagonal, name), None)
    still = next((group for _, _, group in found if _setting(group, "lr") == 0), None)
    if still is not None:
        return _of_still_step(optimizer, name, list(zip(rules, found, strict=True)))
    thresholds = [_coordinate_threshold(optimizer, rule, *entry) for rule, entry in zip(rules, found, strict=True)]
    return _in_units_of_one_threshold(name, thresholds, [p for _, p, _ in found])


def _with_groups(
    labels: Iterable[str], parameters: Mapping[str, nn.Parameter], groups: Iterable[Mapping[str, Any]], name: str
) -> list[_Stepped]:
    """Return parameters in their order, each with its name and its group.

    Raises:
        ProbeError: A parameter is in no group.
    """
    group_of = {p: dict(group) for group in groups for p in group["params"]}
    found = []
    for label in labels:
        p = parameters.get(label)
        if p is None or p not in group_of:
            raise ProbeError(f"parameter {label} is in no group of the {name}, so the metric of its step is not known")
        found.append((label, p, group_of[p]))
    return found


def _of_still_step(optimizer: Optimizer, name: str, found: list[tuple[Rule, _Stepped]]) -> StepMetric:
    """Return the metric of a step with a learning rate of 0, at the end of a schedule: it has no threshold."""
    why = f"the learning rate of the {name} is 0 at this step, so no curvature makes it unstable"
    if all(rule.direction is Direction.GRADIENT for rule, _ in found):
        return StepMetric(name, "lambda_max", None, None, why)
    parts = [
        torch.ones_like(entry[1], dtype=torch.float64)
        if rule.direction is Direction.GRADIENT
        else _adam_metric(optimizer, *entry)
        for rule, entry in found
    ]
    diagonal = torch.cat([part.detach().flatten() for part in parts])
    return StepMetric(name, "preconditioned_sharpness", _validated(diagonal, name), None, why)


def _setting(group: Mapping[str, Any], name: str) -> float:
    """Return a setting of a parameter group as a number; 0 for a weight decay of None.

    Raises:
        ProbeError: The group has no such setting.
    """
    value = group.get(name)
    if value is None and name == "weight_decay":
        return 0.0
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ProbeError(f"{name} of a parameter group must be a number, got {value!r}") from None


def _in_units_of_one_threshold(
    name: str, thresholds: list[_CoordinateThreshold], parameters: list[nn.Parameter]
) -> StepMetric:
    """Return the thresholds of all coordinates as one number if they are equal, else as a metric with a threshold."""
    values = {t.threshold - t.decay for t in thresholds}
    if len(values) == 1 and all(t.metric is None for t in thresholds):
        (value,) = values
        value = float(_validated(torch.tensor(value, dtype=torch.float64), name))
        return StepMetric(name, "lambda_max", None, value)
    unit = thresholds[0].threshold
    parts = [
        (t.metric if t.metric is not None else torch.ones_like(p, dtype=torch.float64)) * (t.threshold / unit)
        - t.decay / unit
        for t, p in zip(thresholds, parameters, strict=True)
    ]
    diagonal = torch.cat([part.detach().flatten() for part in parts])
    return StepMetric(name, "preconditioned_sharpness", _validated(diagonal, name), unit)


def _coordinate_threshold(
    optimizer: Optimizer, rule: Rule, label: str, p: nn.Parameter, group: dict[str, Any]
) -> _CoordinateThreshold:
    """Return the stability threshold of the coordinates of a parameter at the settings of its group."""
    lr, decay, metric = _setting(group, "lr"), _setting(group, "weight_decay"), None
    beside = decay if rule.decoupled_decay else 0.0
    if rule.direction is Direction.GRADIENT:
        threshold = _of_momentum(lr, group, beside)
    else:
        threshold = frozen_adam(lr, float(group["betas"][0]), decoupled_decay=beside)
        metric = _adam_metric(optimizer, label, p, group)
    return _CoordinateThreshold(metric, threshold.value, decay - beside)


def _adam_metric(optimizer: Optimizer, label: str, p: nn.Parameter, group: dict[str, Any]) -> Tensor:
    """Return P of a parameter that steps along Adam's direction, in float64."""
    whitening, first = _whitening(optimizer, label, p, group)
    metric = first * whitening
    if isinstance(optimizer, ARS2Neo):
        metric = metric / _step_factor(optimizer.state[p]["exp_avg"] / metric, group, p)
    return metric


def _of_momentum(lr: float, group: dict[str, Any], decay: float) -> Threshold:
    """Return the threshold of a step along the gradient, with the momentum of the group if it has one."""
    momentum = float(group.get("momentum", 0.0))
    if group.get("nesterov"):
        return nesterov(lr, momentum, decoupled_decay=decay)
    # torch ignores the dampening without a momentum, and ours has none
    dampening = float(group.get("dampening", 0.0)) if momentum else 0.0
    return heavy_ball(lr, momentum, dampening, decoupled_decay=decay)


def _whitening(optimizer: Optimizer, label: str, p: nn.Parameter, group: dict[str, Any]) -> tuple[Tensor, float]:
    """Return the denominator `sqrt(v_hat) + eps` of a parameter's last step, in float64, and `1 - beta1^t`."""
    state = optimizer.state.get(p)
    if not state:
        raise ProbeError(
            f"parameter {label} has no second moment in the {optimizer_name(optimizer)} yet: the metric is known after "
            "the first step in which it has a gradient"
        )
    v = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    t, betas = float(state["step"]), [float(beta) for beta in group["betas"]]
    return (v.double() / (1 - betas[1] ** t)).sqrt() + group["eps"], 1 - betas[0] ** t


def _step_factor(A: Tensor, group: dict[str, Any], p: nn.Parameter) -> Tensor | float:
    """Return the ratio of the length of a matrix's last step to that of lr A."""
    if track_of(group, p) == "vector":
        return 1.0
    taken = apply_step(group, torch.zeros_like(p), A.to(p.dtype))
    return taken.scale.double() if isinstance(taken.scale, Tensor) else taken.scale


def _rule_of(optimizer: Optimizer, group: dict[str, Any], p: nn.Parameter) -> Rule:
    """Return the declaration of the rule that steps a parameter."""
    if isinstance(optimizer, TwoPassOptimizer):
        return optimizer.rule_of(group, p)
    rule = _OF_TORCH[type(optimizer)]
    return replace(rule, decoupled_decay=group.get("decoupled_weight_decay", rule.decoupled_decay))


def _validated(values: Tensor, name: str) -> Tensor:
    """Return the values if they are finite and above 0."""
    low, high = float(values.min()), float(values.max())
    if not (low > 0 and high < float("inf")):
        raise ProbeError(
            f"the metric of the {name} must be finite and above 0, got values from {low:g} to {high:g}: eps is 0 and "
            "some gradients were always 0, or the weight decay alone exceeds the threshold"
        )
    return values
