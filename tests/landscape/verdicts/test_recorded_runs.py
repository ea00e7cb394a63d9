"""Verdicts from runs on disk, and what reading them must not load."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossscope.landscape import compare
from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.judge import judge

ROOM = Path(__file__).parents[3] / "landscape" / "verdicts"


def test_recorded_runs_are_read_and_what_they_lack_is_named(write_run) -> None:
    """These runs have an adaptive trace and lambda_max, as runs of earlier versions have."""
    runs = [write_run(f"{arm}-{seed}", arm, seed) for arm in ("ars2-sync", "ars2-base") for seed in range(2)]
    found = compare("ars2-sync", "ars2-base", runs, level=0.5)
    assert found.pairs == {"unnamed task": 2}
    assert [(row.label, row.word, row.n) for row in found.rows] == [
        ("worst, relative", "open", 0),
        ("average, relative", "small", 2),
        ("raw lambda_max", "small", 2),
    ]
    assert found.rows[1].noise > 0
    costs = found.figures["cost"]["unnamed task"]
    assert costs["ars2-sync"]["ascents"] == pytest.approx(costs["ars2-sync"]["steps"])
    assert costs["ars2-sync"]["gradients"] == pytest.approx(2 * costs["ars2-base"]["gradients"])


def test_noise_curves_are_read_at_the_level(made) -> None:
    import pandas as pd

    x = np.array([0.01, 0.1, 1.0])

    def with_curves(run: Any, factor: float) -> Any:
        steps = [0, 10, 20, 30, 40, 50]
        rows = [{"step": k, "measure": "noise_rise", "x": x, "y": factor * x * 2.0 ** (-k / 10)} for k in steps]
        vars(run)["curves"] = pd.DataFrame(rows)
        return run

    runs = [
        with_curves(run, 2.0 if run.name.startswith("b") else 1.0 + k) for k, run in enumerate(made.two_arms(0.5, 6))
    ]
    found = judge(Claim("C1", "x", "flatter", a=("a",), b=("b",), level=0.02), runs).figures
    curve, step = found["noise_curve"]["digits-mlp"]["b"], found["cost"]["digits-mlp"]["b"]["steps"]
    assert curve["x"] == x.tolist()
    assert curve["y"] == pytest.approx(2.0 * x * 2.0 ** (-step / 10))
    spread = found["noise_curve"]["digits-mlp"]["a"]
    assert np.array(spread["high"]) / np.array(spread["low"]) == pytest.approx([11.0] * 3)


def test_scipy_and_pandas_are_loaded_on_first_use_only() -> None:
    """Help and messages about wrong claims need neither."""
    for path in ROOM.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"scipy", "pandas", "torch"}, path
