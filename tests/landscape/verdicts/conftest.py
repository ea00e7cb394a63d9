"""Runs in memory whose sharpness at every training loss is known, without training and without files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.schema import arrow_schema
from lossscope.landscape.verdicts.verdict import PANEL

MEASURES = (*(one.measure for one in PANEL), "lambda_max")
LOSSES = (2.0, 0.8, 0.3, 0.08, 0.03, 0.01)  # crosses 0.5, 0.1 and 0.02
Change = Callable[[dict[str, Any]], dict[str, Any] | None]


class Tables:
    """Tables of a run, from rows."""

    def __init__(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self._rows = rows

    def rows(self, table: str) -> pa.Table:
        schema = arrow_schema(table)
        rows = [{name: row.get(name) for name in schema.names} for row in self._rows.get(table, ())]
        return pa.Table.from_pylist(rows, schema=schema)


def manifest(arm: str, seed: int, **facts: Any) -> dict[str, Any]:
    config = {"workload": "digits-mlp", "batch_size": 64, "optimizer": arm, "lr": 1e-3, "seed": seed, "steps": 60}
    usual = {
        "arm": arm,
        "seeds": {"init": seed, "split": seed, "order": seed},
        "config": config,
        "data_hash": f"data{seed}",
        "created": "2026-01-01T00:00:00+00:00",
        "loss_unit": "nats",
        "model": {"parameters": 99},
    }
    given = facts.pop("config", {})
    return {**usual, **facts, "config": {**config, **given}}


def run(
    arm: str = "a",
    seed: int = 0,
    *,
    scale: float | Mapping[str, float] = 1.0,
    losses: Iterable[float] = LOSSES,
    measures: Sequence[str] = MEASURES,
    passes: int = 1,
    changed: Change = lambda row: row,
    more: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    name: str | None = None,
    **facts: Any,
) -> Run:
    """Return a run whose measures are `scale` times the square root of the training loss, so known at every level."""
    probes, steps = [], []
    for index, loss in enumerate(losses):
        shared = {"step": 10 * index, "engine": "lossscope", "data_hash": f"data{seed}", "converged": True}
        probes.append({**shared, "measure": "loss", "value": loss, "stderr": 0.0})
        for measure in measures:
            factor = scale if isinstance(scale, int | float) else scale.get(measure, 1.0)
            probes.append(
                {**shared, "measure": measure, "value": factor * loss**0.5, "stderr": 1e-3 * factor * loss**0.5}
            )
    for step in range(1, 10 * len(list(losses)) - 9):
        steps.append({"step": step, "loss": 1.0, "passes": passes, "synced": passes > 1, "seconds": 0.1 * step})
    kept = [new for row in probes if (new := changed(row)) is not None]
    tables: Any = Tables({"probes": kept, "steps": steps, **(more or {})})
    return Run(Path(name or f"{arm}-s{seed}"), manifest(arm, seed, **facts), "finished", tables)


def two_arms(
    ratios: float | Mapping[str, float],
    n: int = 10,
    *,
    spread: float = 0.05,
    draw: int = 0,
    a: Mapping[str, Any] | None = None,
    b: Mapping[str, Any] | None = None,
    **both: Any,
) -> list[Run]:
    """Return n pairs of runs whose measures differ by ratios, up to a spread whose mean over the pairs is 0."""
    generator = np.random.default_rng(draw)
    noise = spread * generator.standard_normal((n, len(MEASURES)))
    noise -= noise.mean(0)
    found = []
    for seed in range(n):
        factors = {
            measure: (ratios if isinstance(ratios, int | float) else ratios.get(measure, 1.0))
            * float(np.exp(noise[seed, k]))
            for k, measure in enumerate(MEASURES)
        }
        found += [run("a", seed, scale=factors, **{**both, **(a or {})}), run("b", seed, **{**both, **(b or {})})]
    return found


@pytest.fixture
def made() -> SimpleNamespace:
    """Return `run`, `two_arms` and `MEASURES`."""
    return SimpleNamespace(run=run, two_arms=two_arms, measures=MEASURES, losses=LOSSES)
