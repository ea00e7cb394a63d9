"""Curvature evaluations: what is measured on the fixed data at which evaluation, and the rows it becomes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.curvature.catalogue import EIGENVALUES
from lossscope.landscape.curvature.estimate_rows import Rows, estimate_row
from lossscope.landscape.curvature.host_transfer import Row
from lossscope.landscape.curvature.options import MeasurementTarget, SolverOptions
from lossscope.landscape.curvature.panel import Panel
from lossscope.landscape.recording.cadence import Preset
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.directional import DirectionalSharpness, directional_sharpness
from lossscope.probes.sharpness.step_quality import (
    LayerRemainders,
    SecantCurvature,
    StepQuality,
    layer_remainders,
    secant_curvature,
    step_quality,
)
from lossscope.probes.spectrum.eigen_tracker import EigenTracker
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["CurvatureEvaluations"]

Moved = Mapping[Tensor, Tensor]  # by parameter

_TOP: Final = ("sharpness_edge_ratio", *EIGENVALUES)
_REST: Final = (
    "lambda_min",
    "trace",
    "frobenius",
    "density",
    "negative_mass",
    "effective_rank",
    "participation_ratio",
)
_ALIGNMENT: Final = ("top_share", "gradient_cosine", "gradient_rayleigh")
_METRIC: Final = ("preconditioned_sharpness", "preconditioned_edge_ratio")


class CurvatureEvaluations:
    """Measures curvature at the present parameters, evaluation after evaluation, starting from the last top vectors.

    A short evaluation takes the loss, `lambda_max` and both numbers along the step taken. A long one takes the whole
    panel, and how far the loss along the step was from its models. Where the preset tracks, `lambda_max` is followed
    from each evaluation to the next, for a few products; otherwise it comes out of the panel's space.

    Args:
        objective: The loss on fixed data.
        preset: How much to measure.
        optimizer: For its metric and its thresholds.
        seed: Of all random vectors.
    """

    def __init__(self, objective: Objective, preset: Preset, optimizer: Optimizer | None = None, seed: int = 0) -> None:
        self.objective = objective
        self.gaps: list[Row] = []  # evaluations at which something could not be measured, and why
        self._preset = preset
        self._subject = MeasurementTarget(objective, optimizer)
        self._effort = SolverOptions(preset.rel, preset.trace_rel, preset.products, seed)
        self._tracker = EigenTracker(preset.rel, max_products=preset.products, seed=seed) if preset.tracked else None
        self._near: dict[str, Tensor] = {}

    def rows(self, step: int, before: Moved, displacement: Moved, *, long: bool = True) -> Rows:
        """The rows of an evaluation after `step` steps.

        What cannot be measured (weights that are not finite, say) is a gap and stops no training.

        Args:
            step: Steps taken so far.
            before: What each parameter was before the step.
            displacement: How far the step moved it; empty where none was taken.
            long: Whether the whole panel is due.
        """
        panel = Panel(self._subject, self._effort, self._near)
        found = Rows()
        for call in self._calls(panel, long, bool(displacement)):
            found += self._attempt(step, call)
        if displacement:
            at, moved = self._flat(before), self._flat(displacement)
            found += self._attempt(step, partial(self._quality if long else self._direction, at, moved))
        return panel.with_provenance(found, step) if found.probes else found

    def _calls(self, panel: Panel, long: bool, stepped: bool) -> Iterator[Callable[[], Rows]]:
        """What is due, in order."""
        yield partial(panel.measure, "loss", ["loss"])
        if self._tracker is not None:
            yield partial(panel.tracked, self._tracker)
        top = _TOP[: 1 + self._preset.top] if self._tracker is None else ()
        if long:
            yield partial(panel.measure, "spectrum", [*top, *_REST])
            yield partial(panel.measure, "adaptive_trace", ["adaptive_trace"])
            yield partial(panel.measure, "log_fisher_rao", ["log_fisher_rao"])
            yield partial(panel.measure, "logits", ["logit_norm", "mean_margin"])
            yield partial(panel.measure, "radial", ["theta_hessian_theta"])
            five = ("top5_share",) if self._preset.top >= 5 else ()
            yield partial(panel.measure, "alignment", [*_ALIGNMENT, *five])
        elif top:
            yield partial(panel.measure, "spectrum", top)
        if long and stepped:
            yield partial(panel.measure, "metric", _METRIC)

    def _attempt(self, step: int, measure: Callable[[], Rows]) -> Rows:
        try:
            return measure()
        except ProbeError as error:
            self.gaps.append({"step": step, "instrument": "curvature", "why": str(error)})
            return Rows()

    def layers(self, step: int, before: Moved, displacement: Moved) -> LayerRemainders | None:
        """The Taylor remainder of each layer, were it alone to take its part of the step; None is a gap."""
        try:
            return layer_remainders(self.objective, self._flat(displacement), at=self._flat(before))
        except ProbeError as error:
            self.gaps.append({"step": step, "instrument": "layers", "why": str(error)})
            return None

    def _flat(self, by_parameter: Moved) -> Tensor:
        parameters = dict(self.objective.model.named_parameters())
        return self.objective.vector.joined([by_parameter[parameters[name]] for name in self.objective.names])

    def _direction(self, at: Tensor, step: Tensor) -> Rows:
        """Slope and curvature along the step that was taken."""
        found = directional_sharpness(self.objective, step, at=at)
        return Rows([estimate_row(name, one) for name, one in _along(found).items()])

    def _quality(self, at: Tensor, step: Tensor) -> Rows:
        """The same, and what the loss really did along the step."""
        begun = time.perf_counter()
        quality = step_quality(self.objective, step, at=at)
        secant = secant_curvature(self.objective, step, at=at)
        cost = {"products": 1, "seconds": time.perf_counter() - begun}
        found = _along(quality.along) | _of_quality(quality) | _of_secant(secant)
        return Rows([{**estimate_row(name, one), **cost} for name, one in found.items()])


def _along(found: DirectionalSharpness) -> dict[str, Estimate]:
    """The measures of a direction."""
    return {"directional_edge_ratio": found.edge_ratio, "directional_sharpness": found.normalized}


def _of_quality(quality: StepQuality) -> dict[str, Estimate]:
    """What the loss did, each number between what rounding may have made of it."""
    off, change = quality.rounding, quality.change
    slope, bent = abs(quality.slope), abs(quality.curvature) / 2
    predicted = quality.slope + quality.curvature / 2
    return {
        "loss_change": _within(change, off),
        "first_remainder": _within(quality.first_remainder, off),
        "second_remainder": _within(quality.second_remainder, off),
        "relative_first": _within(quality.relative_first, _over(off, slope), least=0.0),
        "relative_second": _within(quality.relative_second, _over(off, slope + bent), least=0.0),
        "trust_ratio": _within(quality.trust_ratio, _over(off, abs(predicted))),
    }


def _of_secant(secant: SecantCurvature) -> dict[str, Estimate]:
    """What the gradient did, likewise."""
    return {
        "secant_curvature": _within(secant.rayleigh, secant.rounding),
        "secant_norm": _within(secant.norm, secant.rounding, least=0.0),
        "secant_alignment": _within(secant.alignment, secant.alignment_rounding, least=-1.0, most=1.0),
    }


def _within(value: float, off: float, *, least: float = -math.inf, most: float = math.inf) -> Estimate:
    """A number that rounding may have moved by so much, within the range that it can have."""
    low, high = max(value - off, least), min(value + off, most)
    return Estimate(value, math.nan, low, high, 0, "residual", converged=not math.isnan(value))


def _over(above: float, below: float) -> float:
    return above / below if below else math.nan
