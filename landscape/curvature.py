"""Curvature visits: what is measured on the fixed data, and the rows it becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossscope.landscape.preset import Preset
from lossscope.probes.curvature import measure_spectrum
from lossscope.probes.direction import directional_sharpness
from lossscope.probes.errors import ProbeError
from lossscope.probes.estimate import Estimate, exact_estimate
from lossscope.probes.flatness import adaptive_trace, log_fisher_rao
from lossscope.probes.objective import Objective
from lossscope.probes.operator import hessian

__all__ = ["CurvatureProbe"]

Row = dict[str, Any]


class CurvatureProbe:
    """Measures curvature at the present parameters, visit after visit, starting from the last top vector."""

    def __init__(self, objective: Objective, preset: Preset, seed: int = 0) -> None:
        self.objective = objective
        self.gaps: list[Row] = []  # visits at which nothing could be measured, and why
        self._preset = preset
        self._seed = seed
        self._warm: Tensor | None = None

    def rows(self, step: int, before: dict[str, Tensor], displacement: dict[str, Tensor]) -> list[Row]:
        """The rows of a visit after `step` steps; the step taken comes by parameter name, empty at step 0.

        A visit that cannot be measured (weights that are not finite, say) is a gap and stops no training.
        """
        rows: list[Row] = []
        for measure in (self._loss, self._ends, self._traces, self._adaptive_trace, self._fisher_rao):
            rows += self._attempt(step, measure)
        if displacement:
            rows += self._attempt(step, lambda: self._direction(before, displacement))
        return [{"step": step, **self._certificate(), **row} for row in rows]

    def _attempt(self, step: int, measure: Callable[[], list[Row]]) -> list[Row]:
        try:
            return measure()
        except ProbeError as error:
            self.gaps.append({"step": step, "why": str(error)})
            return []

    def _certificate(self) -> Row:
        objective = self.objective
        return {
            "mode": objective.mode,
            "loss_kind": objective.loss_kind,
            "gauge": "raw",
            "dtype": str(objective.dtype).removeprefix("torch."),
            "seed": self._seed,
            "engine": "lossscope",
            "data_hash": objective.data_hash,
        }

    def _loss(self) -> list[Row]:
        return [_row("loss", exact_estimate(self.objective.value()))]

    def _ends(self) -> list[Row]:
        found = measure_spectrum(
            hessian(self.objective),
            top=1,
            rel=self._preset.rel,
            max_products=self._preset.products,
            quantities=("top", "bottom"),
            seed=self._seed,
            warm_start=self._warm,
        )
        rows = []
        for name, pairs in (("lambda_max", found.top), ("lambda_min", found.bottom)):
            if pairs is not None and len(pairs.values):
                rows.append({**_row(name, pairs.estimate()), "products": found.products, "seconds": found.seconds})
        if found.top is not None and len(found.top.values):
            self._warm = found.top.vectors[:, 0].detach().clone()
        return rows

    def _traces(self) -> list[Row]:
        found = measure_spectrum(
            hessian(self.objective),
            rel=self._preset.trace_rel,
            max_products=self._preset.products,
            quantities=("trace", "frobenius"),
            seed=self._seed,
        )
        # Rows of one call share its cost, so each names all of it.
        cost = {"products": found.products, "seconds": found.seconds}
        estimates = (("trace", found.trace), ("frobenius", found.frobenius))
        return [{**_row(name, estimate), **cost} for name, estimate in estimates if estimate is not None]

    def _adaptive_trace(self) -> list[Row]:
        samples, rel = self._preset.products, self._preset.trace_rel
        trace = adaptive_trace(self.objective, samples=samples, rel=rel, seed=self._seed)
        return [_row("adaptive_trace", trace)]

    def _fisher_rao(self) -> list[Row]:
        return [_row("log_fisher_rao", log_fisher_rao(self.objective))]

    def _direction(self, before: dict[str, Tensor], displacement: dict[str, Tensor]) -> list[Row]:
        at, step = (
            torch.cat([part[name].flatten() for name in self.objective.names]) for part in (before, displacement)
        )
        found = directional_sharpness(self.objective, step, at=at)
        return [_row("edge_ratio", found.edge_ratio), _row("directional_sharpness", found.normalised)]


def _row(measure: str, estimate: Estimate) -> Row:
    return {
        "measure": measure,
        "value": estimate.value,
        "stderr": estimate.stderr,
        "low": estimate.low,
        "high": estimate.high,
        "residual": estimate.residual,
        "samples": estimate.samples,
        "products": estimate.products,
        "seconds": estimate.seconds,
        "converged": estimate.converged,
    }
