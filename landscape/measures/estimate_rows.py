"""Estimates as rows of the tables `probes`, `densities` and `curves`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from lossscope.landscape.measures.host_transfer import Row
from lossscope.probes.eigenvalues.density import SpectralDensity
from lossscope.probes.eigenvalues.results import SpectrumEstimate
from lossscope.probes.objective.objective import Objective
from lossscope.probes.statistics.estimate import Estimate

__all__ = [
    "CURVES",
    "DENSITIES",
    "PROBES",
    "Rows",
    "density_rows",
    "estimate_row",
    "shared_cost",
    "spectrum_rows",
    "with_provenance",
]

PROBES: Final = "probes"
DENSITIES: Final = "densities"
CURVES: Final = "curves"


@dataclass
class Rows:
    """Rows of all tables, in the order in which they are written."""

    probes: list[Row] = field(default_factory=list)
    densities: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)

    def __add__(self, other: Rows) -> Rows:
        """Return these rows followed by the others."""
        return Rows(self.probes + other.probes, self.densities + other.densities, self.curves + other.curves)

    def __bool__(self) -> bool:
        """Return True if there is a row."""
        return bool(self.probes or self.densities or self.curves)

    def by_table(self) -> Iterable[tuple[str, Row]]:
        """Yield every row with the name of its table."""
        yield from ((DENSITIES, row) for row in self.densities)
        yield from ((CURVES, row) for row in self.curves)
        yield from ((PROBES, row) for row in self.probes)


def estimate_row(measure: str, estimate: Estimate, tensor: str | None = None) -> Row:
    """Return the row of an estimate, without provenance columns."""
    return {
        "measure": measure,
        "tensor": tensor,
        "value": estimate.value,
        "stderr": estimate.stderr,
        "low": estimate.low,
        "high": estimate.high,
        "residual": estimate.residual,
        "samples": estimate.samples,
        "products": estimate.products,
        "seconds": estimate.seconds,
        "converged": estimate.converged,
        "cause": None if estimate.converged else estimate.cause or None,
    }


def density_rows(density: SpectralDensity) -> list[Row]:
    """Return a row for each random vector: nodes, weights, and whether each node is a single eigenvalue."""
    settled = [float(one) for one in density.settled]
    return [
        {
            "probe": index,
            "nodes": [float(node) for node in density.nodes],
            "weights": [float(weight) for weight in weights],
            "settled": settled,
            "size": density.size,
        }
        for index, weights in enumerate(density.weights)
    ]


def spectrum_rows(estimates: Mapping[str, Estimate], found: SpectrumEstimate) -> Rows:
    """Return rows of estimates from one computation; each row states the whole cost."""
    return Rows(
        [
            {**estimate_row(name, one), **shared_cost(found), "proof": found.proof if one.bound == "residual" else None}
            for name, one in estimates.items()
        ]
    )


def shared_cost(found: SpectrumEstimate) -> Row:
    """Return the cost columns of a computation."""
    return {
        "products": found.products,
        "seconds": found.seconds,
        "method": found.method,
        "engine": found.engine,
        "gradients": found.gradients,
        "basis": found.basis if found.engine == "lossscope" else None,
        "memory": None if found.basis == "whole basis" else found.memory,
    }


def with_provenance(rows: Rows, step: int, objective: Objective, seed: int, gradient_seconds: float) -> Rows:
    """Return the rows with step, provenance, and cost in gradients if the time of one gradient is known.

    Columns that a row has already take precedence.
    """
    shared = {
        "step": step,
        "mode": objective.mode,
        "loss_kind": objective.loss_kind,
        "seed": seed,
        "data_hash": objective.data_hash,
        "additivity": objective.additivity,
    }
    coordinates = {
        "gauge": "raw",
        "dtype": str(objective.dtype).removeprefix("torch."),
        "parameters": objective.size,
    }
    more = {**coordinates, "engine": "lossscope"}
    return Rows(
        [{**shared, **more, **_error(row, objective), **row, **_cost(row, gradient_seconds)} for row in rows.probes],
        [{**shared, **_error(row, objective), **row, **_cost(row, gradient_seconds)} for row in rows.densities],
        [{**shared, **coordinates, **row, **_cost(row, gradient_seconds)} for row in rows.curves],
    )


def _error(row: Row, objective: Objective) -> Row:
    """Return the measured error of the products of a row; nan where they are exact to rounding."""
    by_differences = "differences" in (row.get("method") or "").split(", ")
    return {"product_error": objective.difference_errors.get(objective.dtype, math.nan) if by_differences else math.nan}


def _cost(row: Row, gradient_seconds: float) -> Row:
    """Return the cost of a row in gradients."""
    return {"gradients": _gradients(row, gradient_seconds)}


def _gradients(row: Row, gradient_seconds: float) -> float:
    """Return the cost that a row states, else its seconds over those of one gradient; nan if neither is known."""
    known = float(row.get("gradients", math.nan))
    if math.isfinite(known):
        return known
    return row["seconds"] / gradient_seconds if row["seconds"] and gradient_seconds > 0 else math.nan
