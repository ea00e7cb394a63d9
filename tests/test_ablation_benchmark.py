"""Benchmark of ablations at a tiny size: what its tables count."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from lossscope.landscape.experiments.ablation import ablate

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "ablation.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_count_runs_products_and_gradients(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "ARMS", ("ars2-base",))
    plan = benchmark.grid(tmp_path, 4, 1)
    plan.settings.update(evaluations=2, curvature_samples=32)
    made = ablate(plan, backend="sequential")
    costs = benchmark.costs(made.runs, 100.0)
    assert costs.groupby("run").size().tolist() == [6]  # two evaluations of two pairs and of the raw number
    assert (costs["products"] > 1).all()
    assert benchmark.costs(made.runs, 1.0).empty
    lines = benchmark.cost_table(made.runs, 100.0)
    four = costs[costs["measure"] != "lambda_max"].groupby(["run", "step"])["gradients"].sum()
    assert f"| the four numbers | | {four.median():.0f} (" in lines[5]
    assert lines[-1].endswith("at 2 evaluations: **missed**." if four.median() > 60 else "at 2 evaluations: met.")
    *_, row = benchmark.throughput_table({"few": made}, 1)
    assert row.startswith("| few | 1 | ")
