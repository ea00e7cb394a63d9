"""Curvature visits: what is measured on the fixed data at which visit, and the rows it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.estimate_row import Row, Rows, estimate_row
from lossscope.landscape.measure import EIGENVALUES
from lossscope.landscape.panel import Panel
from lossscope.landscape.preset import Preset
from lossscope.landscape.subject import Effort, Subject
from lossscope.probes.direction import directional_sharpness
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective import Objective
from lossscope.probes.tracking import EigenTracker

__all__ = ["CurvatureProbe"]

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
_METRIC: Final = ("preconditioned_sharpness", "preconditioned_edge_ratio")


class CurvatureProbe:
    """Measures curvature at the present parameters, visit after visit, starting from the last top vectors.

    A short visit takes the loss, `lambda_max` and both numbers along the step taken. A long one takes the whole
    panel. Where the preset tracks, `lambda_max` is followed from each visit to the next, for a few products;
    otherwise it comes out of the panel's space.

    Args:
        objective: The loss on fixed data.
        preset: How much to measure.
        optimizer: For its metric and its thresholds.
        seed: Of all random vectors.
    """

    def __init__(self, objective: Objective, preset: Preset, optimizer: Optimizer | None = None, seed: int = 0) -> None:
        self.objective = objective
        self.gaps: list[Row] = []  # visits at which something could not be measured, and why
        self._preset = preset
        self._subject = Subject(objective, optimizer)
        self._effort = Effort(preset.rel, preset.trace_rel, preset.products, seed)
        self._tracker = EigenTracker(preset.rel, max_products=preset.products, seed=seed) if preset.tracked else None
        self._near: dict[str, Tensor] = {}

    def rows(self, step: int, before: dict[str, Tensor], displacement: dict[str, Tensor], *, long: bool = True) -> Rows:
        """The rows of a visit after `step` steps.

        What cannot be measured (weights that are not finite, say) is a gap and stops no training.

        Args:
            step: Steps taken so far.
            before: The parameters before the step, by name.
            displacement: The step taken, by name; empty where none was.
            long: Whether the whole panel is due.
        """
        panel = Panel(self._subject, self._effort, self._near)
        found = Rows()
        for call in self._calls(panel, long, bool(displacement)):
            found += self._attempt(step, call)
        if displacement:
            found += self._attempt(step, lambda: self._direction(before, displacement))
        return panel.certified(found, step) if found.probes else found

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
            yield partial(panel.measure, "radial", ["theta_hessian_theta"])
        elif top:
            yield partial(panel.measure, "spectrum", top)
        if long and stepped:
            yield partial(panel.measure, "metric", _METRIC)

    def _attempt(self, step: int, measure: Callable[[], Rows]) -> Rows:
        try:
            return measure()
        except ProbeError as error:
            self.gaps.append({"step": step, "why": str(error)})
            return Rows()

    def _direction(self, before: dict[str, Tensor], displacement: dict[str, Tensor]) -> Rows:
        """Slope and curvature along the step that was taken."""
        at, step = (
            torch.cat([part[name].flatten() for name in self.objective.names]) for part in (before, displacement)
        )
        found = directional_sharpness(self.objective, step, at=at)
        both = {"edge_ratio": found.edge_ratio, "directional_sharpness": found.normalised}
        return Rows([estimate_row(name, one) for name, one in both.items()])
