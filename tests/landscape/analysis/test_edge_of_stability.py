"""Stability thresholds over a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossscope.landscape.analysis.edge_of_stability import edge_ratio, threshold_of, uses_all_data
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore

SGD, ADAM = "torch.optim.sgd.SGD", "torch.optim.adamw.AdamW"
RULE = "lossscope.optimizer.rule_optimizer.RuleOptimizer"
STEPS = (1, 5, 10)
ALL, PART = 100, 10  # samples of a batch, of 100


def rate(step: int) -> float:
    """Return the learning rate of a schedule."""
    return 0.1 if step < 5 else 0.02


def written(
    path: Path,
    kind: str,
    settings: Mapping[str, Any],
    *,
    rule: str | None = None,
    batch: int | None = ALL,
    measures: Mapping[str, float] | None = None,
    loss: float = 1.0,
    spectra: tuple[str, ...] = (),
) -> Run:
    """Write a run of ten steps with a schedule, and measures that are equal at every evaluation."""
    facts = {"class": kind, "rule": rule, "groups": [{"parameters": ["w"], "settings": {"lr": 0.1, **settings}}]}
    manifest: dict[str, Any] = {"arm": "one", "optimizer_facts": facts}
    if batch is not None:
        manifest |= {"config": {"batch_size": batch}, "training_samples": ALL}
    store = RunStore.create(path, manifest)
    for step in range(1, 12):
        store.append("steps", {"step": step, "lr": rate(step), "loss": loss, "gradient_norm": 0.5, "synced": False})
    for kind in spectra:
        store.append("spectra", {"step": 1, "tensor": "w", "object": kind, "values": [1.0]})
    for step in STEPS:
        for measure, value in {"loss": 1.0, "lambda_max": 30.0, **(measures or {})}.items():
            store.append("probes", {"step": step, "measure": measure, "value": value})
    store.close("finished", "the loop ended")
    return Run.open(path)


def levels(run: Run, quantity: str = "lambda_max") -> list[list[float]]:
    return [one.y.tolist() for one in threshold_of(run, quantity).levels]


@pytest.mark.parametrize(
    ("settings", "factor", "formula"),
    [
        ({}, 2.0, "2/η"),
        ({"momentum": 0.9}, 3.8, "2(1+β)/η"),
        ({"momentum": 0.9, "dampening": 0.5}, 7.6, "2(1+β)/((1−d)η)"),
        ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8, "2(1+β)/((1+2β)η)"),
    ],
)
def test_steps_along_the_gradient_have_the_threshold_of_their_momentum_at_every_rate(
    tmp_path: Path, settings: dict[str, Any], factor: float, formula: str
) -> None:
    run = written(tmp_path / "run", SGD, settings)
    (level,) = levels(run)
    assert level == pytest.approx([factor / rate(step) for step in STEPS])
    assert threshold_of(run, "lambda_max").formula == formula
    found = edge_ratio(run)
    assert found is not None
    assert (found[0], found[1].y.tolist()) == ("lambda_max", pytest.approx([30.0 * rate(s) / factor for s in STEPS]))


def test_the_threshold_that_the_recorder_used_comes_first(tmp_path: Path) -> None:
    run = written(tmp_path / "run", SGD, {"weight_decay": 0.1}, measures={"sharpness_edge_ratio": 0.6})
    assert levels(run) == [[50.0] * 3]
    run = written(
        tmp_path / "adam", ADAM, {}, measures={"preconditioned_sharpness": 8.0, "preconditioned_edge_ratio": 2}
    )
    assert levels(run, "preconditioned_sharpness") == [[4.0] * 3]
    assert "preconditioned_sharpness" in threshold_of(run, "lambda_max").why


def test_minibatches_have_the_level_of_batch_sharpness_and_no_line_for_the_largest_eigenvalue(tmp_path: Path) -> None:
    sharp = {"batch_sharpness": 16.6, "sharpness_edge_ratio": 0.48}
    run = written(tmp_path / "sgd", SGD, {}, batch=PART, measures=sharp)
    assert (levels(run), threshold_of(run, "lambda_max").why.endswith("read batch_sharpness")) == ([], True)
    assert levels(run, "batch_sharpness") == [pytest.approx([2 / rate(step) for step in STEPS])]
    found = edge_ratio(run)
    assert found is not None
    assert found[0] == "batch_sharpness"
    heavy = written(tmp_path / "heavy", SGD, {"momentum": 0.9}, batch=PART, measures=sharp)
    small, large = levels(heavy, "batch_sharpness")
    assert small == pytest.approx([0.2 / rate(step) for step in STEPS])
    assert large == pytest.approx([3.8 / rate(step) for step in STEPS])
    assert edge_ratio(heavy) is None
    both = {"preconditioned_sharpness": 8.0, "preconditioned_edge_ratio": 2.0}
    adam = written(tmp_path / "adam", ADAM, {}, batch=PART, measures=both)
    assert (levels(adam, "preconditioned_sharpness"), edge_ratio(adam)) == ([], None)


def test_sam_has_the_root_of_its_own_condition(tmp_path: Path) -> None:
    ascent = {"perturbation": "sam", "mode": "sync", "surrogate": "adversarial", "rho": 0.05}
    run = written(tmp_path / "run", RULE, ascent, rule="sgd")
    (level,) = levels(run)
    for step, found in zip(STEPS, level, strict=True):  # eta * l * (1 + rho * l / |g|) = 2
        roots = np.roots([rate(step) * 0.05 / 0.5, rate(step), -2.0])
        assert found == pytest.approx(float(roots.max().real))
    assert not levels(written(tmp_path / "heavy", RULE, {**ascent, "momentum": 0.9}, rule="sgd"))
    assert not levels(written(tmp_path / "asam", RULE, {**ascent, "perturbation": "asam"}, rule="sgd"))


def test_orthogonalized_steps_have_no_threshold_and_say_which_one_they_would_have(tmp_path: Path) -> None:
    run = written(tmp_path / "run", RULE, {"mode": "base"}, rule="muon", spectra=("orthogonal",))
    why = threshold_of(run, "lambda_max").why
    assert "spectral norm over the nuclear norm" in why
    assert "without momentum" in why
    assert "lossscope.probes.norm_sharpness" in why
    other = written(tmp_path / "other", "torch.optim.rprop.Rprop", {})
    assert threshold_of(other, "lambda_max").why.startswith("no threshold is known for rprop")


def test_without_a_batch_size_the_losses_of_the_steps_tell_whether_they_use_all_data(tmp_path: Path) -> None:
    same = written(tmp_path / "same", SGD, {}, batch=None)
    other = written(tmp_path / "other", SGD, {}, batch=None, loss=1.01)
    unknown = written(tmp_path / "unknown", SGD, {}, batch=None, loss=math.nan)
    assert [uses_all_data(one) for one in (same, other, unknown)] == [True, False, None]
    assert [bool(levels(one)) for one in (same, other, unknown)] == [True, False, False]
    assert "does not tell" in threshold_of(unknown, "lambda_max").why


def test_a_quantity_that_was_not_measured_has_no_threshold(tmp_path: Path) -> None:
    found = threshold_of(written(tmp_path / "run", SGD, {}), "batch_sharpness")
    assert (found.levels, found.measured) == ((), False)
