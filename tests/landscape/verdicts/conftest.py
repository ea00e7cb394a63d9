"""Runs in memory whose sharpness at every training loss is known, without training and without files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.schema import TABLES
from lossscope.landscape.verdicts.verdict import PANEL

MEASURES = (*(one.measure for one in PANEL), "lambda_max")
LOSSES = (2.0, 0.8, 0.3, 0.08, 0.03, 0.01)  # crosses 0.5, 0.1 and 0.02
Change = Callable[[dict[str, Any]], dict[str, Any] | None]


KINDS = {"float": "float64", "bool": "boolean", "int": "Int64"}


@cache
def empty(table: str) -> pd.DataFrame:
    return pd.DataFrame({column.name: pd.Series(dtype=KINDS.get(column.type, "object")) for column in TABLES[table]})


def filled(table: str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a table with the dtypes that reading a run gives."""
    columns = {}
    for column in TABLES[table]:
        values = [row.get(column.name) for row in rows]
        if column.type == "float":
            columns[column.name] = np.array([np.nan if one is None else one for one in values], dtype=np.float64)
        elif column.type == "int" and column.required:
            columns[column.name] = np.array(values, dtype=np.int64)
        else:
            columns[column.name] = pd.array(values, dtype=KINDS.get(column.type, "object"))
    return pd.DataFrame(columns)


class Made(Run):
    """A run whose tables are given rows. One row a step and measure, so its estimates are its probes."""

    def __init__(self, name: str, facts: dict[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        super().__init__(Path(name), facts, "finished", None)
        for table in TABLES:
            vars(self)[table] = filled(table, rows[table]) if rows.get(table) else empty(table)
        vars(self)["estimates"] = vars(self)["probes"]


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
    return Made(
        name or f"{arm}-s{seed}", manifest(arm, seed, **facts), {"probes": kept, "steps": steps, **(more or {})}
    )


def two_arms(
    ratios: float | Mapping[str, float],
    n: int = 10,
    *,
    spread: float = 0.05,
    draw: int = 0,
    names: tuple[str, str] = ("a", "b"),
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
        found += [
            run(names[0], seed, scale=factors, **{**both, **(a or {})}),
            run(names[1], seed, **{**both, **(b or {})}),
        ]
    return found


@pytest.fixture
def made() -> SimpleNamespace:
    """Return `run`, `two_arms` and `MEASURES`."""
    return SimpleNamespace(run=run, two_arms=two_arms, measures=MEASURES, losses=LOSSES)
