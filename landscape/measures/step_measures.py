"""Measures along the step that was taken: slope, curvature, error of the quadratic model, secants."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from lossscope.landscape.measures.estimate_rows import Rows, estimate_row
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.critical import critical_learning_rate, nonquadraticity
from lossscope.probes.sharpness.directional import DirectionalSharpness, directional_sharpness
from lossscope.probes.sharpness.ghost_radius import softmax_ghost_radius
from lossscope.probes.sharpness.step_quality import SecantCurvature, StepQuality, secant_curvature, step_quality
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["ByParameter", "RecordedStep", "critical_rows", "flat_vector", "ghost_rows", "one_rate", "step_rows"]

ByParameter = Mapping[Tensor, Tensor]
_OF_CURVATURE: Final = frozenset({"directional_edge_ratio", "directional_sharpness", "lambda_dir"})


@dataclass(frozen=True)
class RecordedStep:
    """One optimizer step: each parameter before it, the displacement, and the parameter groups with the settings used.

    A scheduler may have changed the settings of the optimizer since.
    """

    before: ByParameter
    displacement: ByParameter
    groups: Sequence[Mapping[str, Any]] | None = None


def flat_vector(objective: Objective, by_parameter: ByParameter) -> Tensor:
    """Return tensors given by parameter as a flat vector `(n,)` of the objective.

    Raises:
        ProbeError: The model has lost a parameter of the objective, or has another one in its place.
    """
    parameters = dict(objective.model.named_parameters())
    for name in objective.names:
        if name not in parameters:
            raise ProbeError(
                f"parameter {name!r} of the objective is no longer in the model: make a new Objective after changing it"
            )
        if parameters[name] not in by_parameter:
            raise ProbeError(
                f"parameter {name!r} of the objective has no recorded step: it was replaced or frozen after the "
                "objective was made; make a new Objective of the model"
            )
    return objective.vector.joined([by_parameter[parameters[name]] for name in objective.names])


def one_rate(objective: Objective, groups: Sequence[Mapping[str, Any]]) -> float | str:
    """Return the learning rate of the step of all parameters, or the reason why there is no single one."""
    parameters = dict(objective.model.named_parameters())
    members = {parameters[name] for name in objective.names if name in parameters}
    given = [group.get("lr") for group in groups if members & {*group["params"]}]
    if not given or any(lr is None for lr in given):
        return "the optimizer names no learning rate"
    rates = sorted({float(lr) for lr in given if lr is not None})
    if len(rates) > 1:
        shown = ", ".join(f"{rate:g}" for rate in rates)
        return f"the parameter groups have different learning rates ({shown}): read critical_step"
    return rates[0] if rates[0] > 0 else f"the learning rate is {rates[0]:g} at this step"


def critical_rows(
    objective: Objective,
    step: RecordedStep,
    names: frozenset[str],
    lr: float | None,
    edge: Estimate | None,
    near: float | None,
) -> tuple[Rows, float]:
    """Bracket the critical learning rate of a step, and return it, or its multiple of the step, as the next start.

    Args:
        objective: The loss.
        step: The step.
        names: The measures to take.
        lr: Its learning rate; None if the parameters have several, for the multiple of the step alone.
        edge: Directional edge ratio of the same step; None if it is not known.
        near: The number that was returned for an earlier step; None if there is none.

    Raises:
        ProbeError: There is no bracket.
    """
    at, moved = flat_vector(objective, step.before), flat_vector(objective, step.displacement)
    if edge is not None and math.isnan(edge.value) and bool((moved != 0).any()):
        raise ProbeError(
            "the step is no descent direction of the loss on the fixed data: no length of it leaves the loss as it was"
        )
    unit = 1.0 if lr is None else lr
    found = critical_learning_rate(objective, moved, unit, at=at, start=1.0 if near is None else near / unit)
    estimates = {"critical_step": found.multiple}
    if lr is not None:
        estimates |= {"critical_learning_rate": found.rate, "critical_sharpness": found.sharpness}
    if edge is not None:
        estimates["critical_ratio"] = nonquadraticity(found.multiple, edge)
    return Rows([estimate_row(name, one) for name, one in estimates.items() if name in names]), found.rate.value


def step_rows(
    objective: Objective, step: RecordedStep, names: frozenset[str], lr: float | None = None
) -> tuple[Rows, Estimate]:
    """Compute the named measures along a step, and its directional edge ratio.

    Slope and curvature at the start of the step cost one product; the other measures need the losses and gradients at
    both of its ends as well.

    Args:
        objective: The loss.
        step: The step.
        names: The measures to take.
        lr: Its learning rate; None if the parameters have several, for no `lambda_dir`.
    """
    at, moved = flat_vector(objective, step.before), flat_vector(objective, step.displacement)
    if names <= _OF_CURVATURE:
        curvature = directional_sharpness(objective, moved, at=at)
        along = _along(curvature, lr)
        return Rows([estimate_row(name, one) for name, one in along.items() if name in names]), curvature.edge_ratio
    begun = time.perf_counter()
    quality = step_quality(objective, moved, at=at)
    secant = secant_curvature(objective, moved, at=at)
    cost = {"products": 1, "seconds": time.perf_counter() - begun}
    found = _along(quality.along, lr) | _of_quality(quality) | _of_secant(secant)
    rows = [{**estimate_row(name, one), **cost} for name, one in found.items() if name in names]
    return Rows(rows), quality.along.edge_ratio


def ghost_rows(objective: Objective, step: RecordedStep, names: frozenset[str]) -> Rows:
    """Compare a step with the softmax ghost radius.

    Args:
        objective: The loss.
        step: The step.
        names: The measures to take.

    Raises:
        ProbeError: The step is zero, or the loss has no logits.
    """
    at, moved = flat_vector(objective, step.before), flat_vector(objective, step.displacement)
    found = softmax_ghost_radius(objective, moved, at=at)
    estimates = {
        "ghost_ratio": found.ratio,
        "ghost_ratio_99": found.ratio_99,
        "ghost_ratio_90": found.ratio_90,
        "ghost_runner_up": found.runner_up,
        "ghost_nonlinearity": found.nonlinearity,
    }
    return Rows([estimate_row(name, one) for name, one in estimates.items() if name in names])


def _along(found: DirectionalSharpness, lr: float | None) -> dict[str, Estimate]:
    """Return the measures of slope and curvature along the step."""
    of_rate = {} if lr is None else {"lambda_dir": found.sharpness(lr)}
    return {"directional_edge_ratio": found.edge_ratio, "directional_sharpness": found.normalized, **of_rate}


def _of_quality(quality: StepQuality) -> dict[str, Estimate]:
    """Return the change of the loss and the errors of its models, each with bounds on the effect of rounding."""
    rounding, change = quality.rounding, quality.change
    slope, curvature = abs(quality.slope), abs(quality.curvature) / 2
    predicted = quality.slope + quality.curvature / 2
    return {
        "loss_change": _rounded(change, rounding),
        "first_remainder": _rounded(quality.first_remainder, rounding),
        "second_remainder": _rounded(quality.second_remainder, rounding),
        "relative_first": _rounded(quality.relative_first, _ratio(rounding, slope), least=0.0),
        "relative_second": _rounded(quality.relative_second, _ratio(rounding, slope + curvature), least=0.0),
        "trust_ratio": _rounded(quality.trust_ratio, _ratio(rounding, abs(predicted))),
    }


def _of_secant(secant: SecantCurvature) -> dict[str, Estimate]:
    """Return the measures of the change of gradient, with bounds on the effect of rounding."""
    return {
        "secant_curvature": _rounded(secant.rayleigh, secant.rounding),
        "secant_norm": _rounded(secant.norm, secant.rounding, least=0.0),
        "secant_alignment": _rounded(secant.alignment, secant.alignment_rounding, least=-1.0, most=1.0),
    }


def _rounded(value: float, rounding: float, *, least: float = -math.inf, most: float = math.inf) -> Estimate:
    """Return a value with the bounds that rounding leaves it, clipped to the range that it can have."""
    low, high = max(value - rounding, least), min(value + rounding, most)
    return Estimate(value, math.nan, low, high, 0, "residual", converged=not math.isnan(value))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
