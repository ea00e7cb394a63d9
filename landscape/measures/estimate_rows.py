"""Estimates as rows of the tables `probes` and `densities`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from lossscope.landscape.measures.host_transfer import Row
from lossscope.probes.eigenvalues.density import SpectralDensity
from lossscope.probes.objective.objective import Objective
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["DENSITIES", "PROBES", "Rows", "density_rows", "estimate_row", "with_provenance"]

PROBES: Final = "probes"
DENSITIES: Final = "densities"


@dataclass
class Rows:
    """Rows of both tables, in the order in which they are written."""

    probes: list[Row] = field(default_factory=list)
    densities: list[Row] = field(default_factory=list)

    def __add__(self, other: Rows) -> Rows:
        """Return these rows followed by the others."""
        return Rows(self.probes + other.probes, self.densities + other.densities)

    def by_table(self) -> Iterable[tuple[str, Row]]:
        """Yield every row with the name of its table."""
        yield from ((DENSITIES, row) for row in self.densities)
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
    more = {
        "gauge": "raw",
        "dtype": str(objective.dtype).removeprefix("torch."),
        "engine": "lossscope",
        "parameters": objective.size,
    }
    return Rows(
        [{**shared, **more, **row, "gradients": _gradients(row, gradient_seconds)} for row in rows.probes],
        [{**shared, **row, "gradients": _gradients(row, gradient_seconds)} for row in rows.densities],
    )


def _gradients(row: Row, gradient_seconds: float) -> float:
    """Return the cost that a row states, else its seconds over those of one gradient; nan if neither is known."""
    known = float(row.get("gradients", math.nan))
    if math.isfinite(known):
        return known
    return row["seconds"] / gradient_seconds if row["seconds"] and gradient_seconds > 0 else math.nan
