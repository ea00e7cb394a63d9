"""Measures along the step that was taken: slope, curvature, error of the quadratic model, secants."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lossscope.landscape.measures.estimate_rows import Rows, estimate_row
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.directional import DirectionalSharpness, directional_sharpness
from lossscope.probes.sharpness.step_quality import SecantCurvature, StepQuality, secant_curvature, step_quality
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["ByParameter", "RecordedStep", "flat_vector", "step_rows"]

ByParameter = Mapping[Tensor, Tensor]


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


def step_rows(objective: Objective, step: RecordedStep, names: frozenset[str]) -> Rows:
    """Compute the named measures along a step.

    Slope and curvature at the start of the step cost one product; the other measures need the losses and gradients at
    both of its ends as well.
    """
    at, moved = flat_vector(objective, step.before), flat_vector(objective, step.displacement)
    if names <= {"directional_edge_ratio", "directional_sharpness"}:
        along = _along(directional_sharpness(objective, moved, at=at))
        return Rows([estimate_row(name, one) for name, one in along.items() if name in names])
    begun = time.perf_counter()
    quality = step_quality(objective, moved, at=at)
    secant = secant_curvature(objective, moved, at=at)
    cost = {"products": 1, "seconds": time.perf_counter() - begun}
    found = _along(quality.along) | _of_quality(quality) | _of_secant(secant)
    return Rows([{**estimate_row(name, one), **cost} for name, one in found.items() if name in names])


def _along(found: DirectionalSharpness) -> dict[str, Estimate]:
    """Return the measures of slope and curvature along the step."""
    return {"directional_edge_ratio": found.edge_ratio, "directional_sharpness": found.normalized}


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
