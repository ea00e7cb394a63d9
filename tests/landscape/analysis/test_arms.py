"""Arms: runs of one name are pooled only where their recorded settings agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from lossscope.landscape.analysis.arms import (
    SEED_SETTINGS,
    WITHOUT_EFFECT,
    by_arm,
    has_seeds,
    step_of_another_rate,
)
from lossscope.landscape.run import Run
from lossscope.landscape.training.config import TrainConfig
from lossscope.reports import overview, render

Write = Callable[..., Run]


def facts(kind: str = "torch.optim.AdamW", rule: str | None = None, **settings: Any) -> dict[str, Any]:
    group = {"parameters": ["w"], "settings": {"lr": 1e-2, "betas": [0.9, 0.999], "seed": 0, **settings}}
    return {"class": kind, "rule": rule, "groups": [group]}


def config(**settings: Any) -> dict[str, Any]:
    usual = {"workload": "digits-mlp", "optimizer": "adamw", "seed": 0, "name": "a", "steps": 40, "options": {}}
    return {**usual, **settings}


DIFFERENT = {
    "lr": ({"optimizer_facts": facts()}, {"optimizer_facts": facts(lr=1e-4)}, ["x (lr=0.01)", "x (lr=0.0001)"]),
    "option": (
        {"optimizer_facts": facts(shear="looksam"), "config": config()},
        {"optimizer_facts": facts(shear="placebo"), "config": config(options={"shear": "placebo"})},
        ["x (shear=looksam)", "x (shear=placebo)"],
    ),
    "option, in an older manifest": (
        {"config": config(options={"rho": 0.1})},
        {"config": config(options={"rho": 0.2})},
        ["x (rho=0.1)", "x (rho=0.2)"],
    ),
    "class": (
        {"optimizer_facts": facts("torch.optim.AdamW")},
        {"optimizer_facts": facts("torch.optim.Adam")},
        ["x (class=torch.optim.AdamW)", "x (class=torch.optim.Adam)"],
    ),
    "workload": (
        {"config": config()},
        {"config": config(workload="digits-conv")},
        ["x (workload=digits-mlp)", "x (workload=digits-conv)"],
    ),
    "batch": (
        {"config": config(batch_size=8)},
        {"config": config(batch_size=16)},
        ["x (batch_size=8)", "x (batch_size=16)"],
    ),
    "group of another optimizer": (
        {"optimizer_facts": {"class": None, "optimizers": [facts(), facts(momentum=0.9)]}},
        {"optimizer_facts": {"class": None, "optimizers": [facts(), facts(momentum=0.5)]}},
        ["x (momentum=[None, 0.9])", "x (momentum=[None, 0.5])"],
    ),
}


@pytest.mark.parametrize(("first", "second", "names"), DIFFERENT.values(), ids=DIFFERENT)
def test_runs_of_different_settings_are_different_arms_named_by_the_difference(write_run: Write, first, second, names):
    runs = [write_run("a", "x", 0, **first), write_run("b", "x", 1, **second), write_run("c", "x", 2, **first)]
    arms = by_arm(runs)
    assert list(arms) == names
    assert [[run.name for run in members] for members in arms.values()] == [["a", "c"], ["b"]]


EQUAL = {
    "seeds, names and what is recorded": (
        config(),
        config(seed=1, seed_order=5, name="b", out="else", preset="full", evaluations=3, threads=1),
    ),
    "the seed of the optimizer": (config(options={"seed": 0}), config(options={"seed": 1})),
    "nothing recorded": ({}, config()),
    "a setting that an earlier version did not have": (config(), config(until_accuracy=0.9)),
}


@pytest.mark.parametrize(("first", "second"), EQUAL.values(), ids=EQUAL)
def test_runs_that_differ_in_nothing_that_counts_are_one_arm(write_run: Write, first, second):
    runs = [write_run("a", "x", 0, config=first), write_run("b", "x", 1, config=second)]
    assert {name: len(members) for name, members in by_arm(runs).items()} == {"x": 2}


def test_values_of_the_wrong_type_in_a_manifest_are_no_settings(write_run: Write) -> None:
    odd = {"config": [1], "optimizer_facts": "x", "model": {"tensors": 3}, "seeds": [0]}
    runs = [write_run("a", "x", 0), write_run("b", "x", 1)]
    for run in runs:
        run.manifest.update(odd)  # the store refuses to write or read such values
    assert len(by_arm(runs)) == 1


def test_every_report_shows_the_arms_apart(write_run: Write) -> None:
    runs = [
        write_run(name, "x", seed, optimizer_facts=facts(lr=lr))
        for seed, (name, lr) in enumerate((("a", 0.1), ("b", 0.2)))
    ]
    assert "2 runs of 2 arms: x (lr=0.1), x (lr=0.2)" in render(overview(runs), "text")


def test_without_recorded_seeds_a_report_speaks_of_runs(write_run: Write) -> None:
    known = [write_run(f"a{seed}", "my seed", seed) for seed in range(2)]
    unknown = [write_run(f"b{seed}", "my seed", seed, seeds=None) for seed in range(2)]
    assert all(map(has_seeds, known))
    assert "range over seeds" in render(overview(known), "text")
    assert not any(map(has_seeds, unknown))
    text = render(overview(unknown), "text")
    assert "range over seeds" not in text
    assert "range over runs" in text
    assert "Seeds were not recorded" in text
    assert "1 arm: my seed" in text
    mixed = render(overview([*known, *unknown]), "text")
    assert "b0, b1 recorded no seeds" in mixed
    assert "range over seeds" in mixed


def test_runs_of_one_arm_with_different_schedules_are_told(write_run: Write) -> None:
    def lowered(factor: float) -> Callable[..., Any]:
        return lambda table, row: {**row, "lr": 0.1 * factor} if table == "steps" and row["step"] >= 20 else row

    same, longer = write_run("a", "x", 0, rows=lowered(0.5)), write_run("b", "x", 1, rows=lowered(0.5), steps=60)
    other = write_run("c", "x", 2, rows=lowered(0.1))
    assert step_of_another_rate([same, longer]) is None
    assert step_of_another_rate([same, longer, other]) == 20
    assert "different learning rates" not in render(overview([same, longer]), "text")
    assert "x: its runs have different learning rates from step 20 on" in render(overview([same, other]), "text")


def test_every_setting_of_a_training_either_separates_arms_or_is_named_as_without_effect() -> None:
    """A key that is added to `TrainConfig` has to be put into one of the two sets."""
    separates = {"workload", "optimizer", "steps", "batch_size", "lr", "curvature_samples", "until_accuracy", "options"}
    separates |= {"schedule"}
    assert {one.name for one in fields(TrainConfig)} == separates | SEED_SETTINGS | (WITHOUT_EFFECT - {"visits"})
