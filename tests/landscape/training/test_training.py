"""Recorded training: reproducibility, resumption, and the status at the end."""

from __future__ import annotations

import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lossscope.landscape import TrainConfig, first_step, train
from lossscope.landscape.errors import ConfigError, RunError, TrainingError
from lossscope.landscape.recording.checkpoints import checkpoints
from lossscope.landscape.run import Run
from lossscope.landscape.training.setup import job_of
from lossscope.landscape.training.training import resolved
from lossscope.optimizer import ENTRIES, Entry
from lossscope.reports import flatness

EXACT = ["step", "loss", "lr", "phi", "adversarial_loss", "test_accuracy", "test_loss"]


def config(folder: Path, **settings: object) -> TrainConfig:
    usual = {"out": str(folder), "steps": 12, "evaluations": 0, "eval_every": 5, "threads": 1}
    return TrainConfig.of({**usual, **settings})


def last_weights(run: Run) -> dict[str, torch.Tensor]:
    (*_, folder) = checkpoints(run.path).values()
    return load_file(folder / "weights.safetensors")


RESUMED = ("ars2-base", "ars2-lazy", "ars2-aga", "ars2-timer", "adamw", "sgd", "muon", "normuon", "looksam")
QUICK = ("ars2-aga", "muon", "looksam")  # a trigger, a rule of another, an ascent over a base


@pytest.mark.parametrize(
    "optimizer", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RESUMED]
)
def test_a_resumed_run_continues_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    whole = train(config(tmp_path, optimizer=optimizer, name="whole"))
    train(config(tmp_path, optimizer=optimizer, name="halves", steps=7))
    halves = train(config(tmp_path, optimizer=optimizer, name="halves"), resume=True)
    ours, theirs = last_weights(whole), last_weights(halves)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert halves.steps["step"].tolist() == list(range(1, 13))
    before = (halves.path / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="has 12 steps already, more than steps = 7; resume it with more steps"):
        train(config(tmp_path, optimizer=optimizer, name="halves", steps=7), resume=True)
    assert (halves.path / "run.json").read_bytes() == before
    after = halves.steps["step"] > 7
    pd.testing.assert_frame_equal(whole.steps.loc[after, EXACT[:5]], halves.steps.loc[after, EXACT[:5]])


def test_two_runs_of_one_config_are_equal_and_each_seed_matters(tmp_path: Path) -> None:
    first = train(config(tmp_path, name="first"))
    again = train(config(tmp_path, name="again"))
    assert first.steps["loss"].tolist() == again.steps["loss"].tolist()
    for seed in ("seed_init", "seed_split", "seed_order"):
        other = train(config(tmp_path, name=seed, **{seed: 5}))
        assert other.steps["loss"].tolist() != first.steps["loss"].tolist()
        assert other.manifest["seeds"][seed.removeprefix("seed_")] == 5


def test_training_learns_the_digits(tmp_path: Path) -> None:
    run = train(config(tmp_path, steps=100, eval_every=50))
    assert run.loss_unit == run.manifest["loss_unit"] == "nats"
    assert run.steps["test_accuracy"].dropna().iloc[-1] > 0.9
    step = first_step(run, "test_accuracy", 0.5)
    assert step is not None
    assert step <= 50
    assert first_step(run, "test_accuracy", 1.1) is None


def test_training_learns_prose(tmp_path: Path) -> None:
    run = train(config(tmp_path, workload="prose-mlp", steps=60, eval_every=60, evaluations=0, preset="economy"))
    assert run.steps["test_accuracy"].iloc[-1] > 0.24  # a space, the most frequent character, is 0.18 of all


def test_a_loss_that_is_not_finite_ends_the_run_as_failed_and_keeps_its_rows(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step \d+; the rows until then are kept"):
        train(config(tmp_path, name="hot", optimizer="sgd", lr=1e30, steps=40))
    run = Run.open(tmp_path / "hot")
    assert run.status == "failed"
    assert "the loss became" in run.manifest["how_it_ended"]
    assert len(run.steps) >= 1
    assert run.steps["loss"].iloc[0] > 0


def test_a_foreign_optimizer_can_be_registered_and_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENTRIES, "theirs", Entry("Adam", "torch", torch.optim.Adam, {"lr": 1e-3}))
    run = train(config(tmp_path, optimizer="theirs", lr=0.01))
    assert run.steps["loss"].iloc[-1] < run.steps["loss"].iloc[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimizer": "sgd"}, {"lr": 0.1}),
        ({"optimizer": "looksam"}, {"lr": 0.1}),
        ({"optimizer": "sam", "options": {"base": "muoneq"}}, {"lr": 0.01, "base": "muoneq"}),
        ({"optimizer": "sam", "options": {"base": "muon"}}, {"base": "muon"}),
        ({"optimizer": "sgd", "options": {"lr": 0.2}}, {"lr": 0.2}),
        ({"optimizer": "sgd", "lr": 0.2}, {}),
        ({"optimizer": "adamw"}, {}),
        ({"optimizer": "sgd", "workload": "modadd-59"}, {"weight_decay": 1.0}),
        ({"optimizer": "sam", "workload": "modadd-59"}, {"weight_decay": 1.0}),
        (
            {"optimizer": "sam", "workload": "modadd-59", "options": {"base": "adamw"}},
            {"weight_decay": 1.0, "betas": (0.9, 0.98), "base": "adamw"},
        ),
        (
            {"optimizer": "sam", "workload": "modadd-59", "options": {"base": "ars2-base"}},
            {"weight_decay": 1.0, "betas": (0.9, 0.98), "base": "ars2-base"},
        ),
        (
            {"optimizer": "looksam", "workload": "modadd-59", "options": {"base": "nope"}},
            {"weight_decay": 1.0, "base": "nope"},
        ),
    ],
)
def test_the_usual_learning_rate_is_that_of_the_rule_unless_another_is_given(
    settings: dict[str, object], expected: dict[str, object]
) -> None:
    assert resolved(TrainConfig.of(settings)).options == expected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ars2-timer", {"aga_lambda": 0.5}),
        pytest.param("ars2-random", {}, marks=pytest.mark.slow),
        pytest.param("ars2-lazy", {"shear": "placebo"}, marks=pytest.mark.slow),
    ],
)
def test_seeds_of_a_control_arm_are_independent_and_a_resumed_run_continues_its_own(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    """Only the order seed of the three differs, so the first loss is the same."""
    seeds = {"seed_init": 0, "seed_split": 0}
    drawn = [job_of(resolved(TrainConfig.of({"optimizer": name, "seed": seed}))) for seed in (0, 3, 2**31 - 1)]
    assert [job.optimizer.param_groups[0]["seed"] for job in drawn] == [0, 3, 2**31 - 1]
    asked = TrainConfig.of({"optimizer": name, "seed": 3, "options": {"seed": 8}})
    assert job_of(asked).optimizer.param_groups[0]["seed"] == 8

    def arm(run: str, **more: object) -> TrainConfig:
        return config(tmp_path, optimizer=name, name=run, **{"options": options, "seed": 3, **seeds, **more})

    whole = train(arm("whole"))
    train(arm("halves", steps=7))
    halves = train(arm("halves"), resume=True)
    ours, theirs = last_weights(whole), last_weights(halves)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    zero = last_weights(train(arm("zero", options={**options, "seed": 0})))
    assert not all(torch.equal(ours[key], zero[key]) for key in ours)
    same = last_weights(train(arm("said", options={**options, "seed": 3})))
    assert all(torch.equal(ours[key], same[key]) for key in ours)


def test_an_unknown_base_is_a_known_error(tmp_path: Path) -> None:
    for base in ("sgdd", ["sgd"], 3):
        with pytest.raises(ConfigError, match="sgd"):
            train(config(tmp_path, optimizer="sam", options={"base": base}))


def test_a_setting_rejected_by_the_first_step_is_a_known_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("AdamW", "torch", torch.optim.AdamW, {"lr": 1e-3, "differentiable": False})
    monkeypatch.setitem(ENTRIES, "theirs", entry)
    with pytest.raises(TrainingError, match=r"theirs cannot step with .*differentiable"):
        train(config(tmp_path, name="odd", optimizer="theirs", options={"differentiable": True}))
    assert Run.open(tmp_path / "odd").status == "failed"


def test_reports_say_on_how_many_of_the_training_samples_the_curvature_was_measured(tmp_path: Path) -> None:
    run = train(config(tmp_path, steps=1, evaluations=0))
    measured, trained = run.manifest["curvature_samples"], run.manifest["training_samples"]
    assert trained == 1437
    assert 0 < measured <= trained
    words = f"all {trained}" if measured == trained else f"{measured} of {trained}"
    assert f"Curvature is measured on {words} training samples." in flatness([run]).notes


def test_the_arm_the_measures_and_the_number_of_checkpoints_are_settings(tmp_path: Path) -> None:
    given = {"steps": 6, "out": str(tmp_path), "arm": "placebo", "measures": ["trace"], "evaluations": 2}
    run = train(TrainConfig.of({**given, "checkpoints": 3}))
    assert run.manifest["arm"] == "placebo"
    assert run.name == "digits-mlp-placebo-s0"
    assert set(run.probes["measure"]) == {"loss", "train_loss", "test_loss", "trace"}
    assert len(list((run.path / "checkpoints").iterdir())) == 3
    with pytest.raises(ConfigError, match="got 'trase'; did you mean 'trace'"):
        train(TrainConfig.of({**given, "name": "other", "measures": ["trase"]}))
    assert not (tmp_path / "other").exists()


def test_a_batch_of_more_examples_than_there_are_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size must be at most 1437, .* of digits-mlp, got 5000"):
        train(config(tmp_path, batch_size=5000))
    assert list(tmp_path.iterdir()) == []


def test_until_accuracy_stops_early(tmp_path: Path) -> None:
    run = train(config(tmp_path, steps=100, eval_every=10, until_accuracy=0.5))
    assert run.steps["step"].iloc[-1] < 100
    assert "test accuracy" in run.manifest["stopped_early"]


def test_presets_save_log_spaced_checkpoints(tmp_path: Path) -> None:
    run = train(config(tmp_path, steps=50, preset="standard"))
    steps = list(checkpoints(run.path))
    assert len(steps) == 8
    assert (steps[0], steps[-1]) == (0, 50)


def test_evaluations_have_the_losses_on_all_training_data_and_on_the_test_set(tmp_path: Path) -> None:
    usual = {"preset": "economy", "evaluations": 3, "measures": ["loss"], "steps": 120, "eval_every": 120}
    whole = train(config(tmp_path, name="whole", **usual))
    part = train(config(tmp_path, name="part", curvature_samples=100, **usual))
    rows, fewer = (run.estimates.pivot(index="step", columns="measure") for run in (whole, part))
    assert rows.index[0] == 0
    assert rows.index[1] >= 120 / 50  # no claim reads the loss of the first steps
    assert rows.index[-1] == 120
    assert whole.manifest["curvature_samples"] == whole.manifest["training_samples"] == 1437
    assert (
        rows["value", "train_loss"].tolist() == rows["value", "loss"].tolist() == fewer["value", "train_loss"].tolist()
    )
    assert (fewer["value", "loss"] != fewer["value", "train_loss"]).all()
    assert rows["value", "test_loss"].iloc[-1] == pytest.approx(whole.steps["test_loss"].iloc[-1], rel=1e-5)
    assert len({rows["data_hash", "train_loss"][0], rows["data_hash", "test_loss"][0]}) == 2


def test_evaluations_take_place_at_the_given_steps_before_and_after_a_resume(tmp_path: Path) -> None:
    usual = {"preset": "economy", "measures": ["loss"], "evaluate_at": [9, 3, 12], "eval_every": 12}
    whole = train(config(tmp_path, name="whole", **usual))
    train(config(tmp_path, name="halves", **{**usual, "steps": 7, "evaluate_at": [3]}))
    halves = train(config(tmp_path, name="halves", **usual), resume=True)
    for run in (whole, halves):
        assert run.probes["step"].unique().tolist() == [3, 9, 12]
    with pytest.raises(ConfigError, match="evaluate_at must lie within the 12 planned steps, got 13"):
        train(config(tmp_path, name="beyond", **{**usual, "evaluate_at": [13]}))
    assert not (tmp_path / "beyond").exists()


def test_a_run_with_weights_at_its_evaluations_is_the_same_and_resumes_from_a_full_checkpoint(tmp_path: Path) -> None:
    usual = {"preset": "economy", "evaluations": 5, "measures": ["loss"], "checkpoints": 2, "eval_every": 12}
    usual["weights_at_evaluations"] = True
    plain = train(config(tmp_path, name="plain", **{**usual, "weights_at_evaluations": False}))
    whole = train(config(tmp_path, name="whole", **usual))
    assert list(checkpoints(plain.path)) == list(checkpoints(whole.path, resumable=True)) == [0, 12]
    assert list(checkpoints(whole.path)) == sorted(set(whole.probes["step"]))
    train(config(tmp_path, name="halves", **{**usual, "steps": 7}))
    folder = checkpoints(tmp_path / "halves")[7]
    (folder / "optimizer.pt").unlink()  # now the weights of step 7 are those of a run that was killed after them
    halves = train(config(tmp_path, name="halves", **usual), resume=True)
    assert halves.steps["step"].tolist() == list(range(1, 13))
    ours, *others = (last_weights(run) for run in (whole, plain, halves))
    assert all(torch.equal(ours[name], theirs[name]) for theirs in others for name in ours)
    assert list(checkpoints(halves.path)) == list(checkpoints(whole.path))


def test_resuming_requires_the_settings_of_the_start(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist, so it cannot be resumed"):
        train(config(tmp_path, name="none"), resume=True)
    train(config(tmp_path, name="mine", steps=3))
    with pytest.raises(ConfigError, match="was started with seed = 0, got 4"):
        train(config(tmp_path, name="mine", seed=4), resume=True)


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    run = train(config(tmp_path, name="mine", steps=3))
    (*_, folder) = checkpoints(run.path).values()
    for name in ("weights.safetensors", "optimizer.pt"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            RunError, match=r"cannot be loaded: .*; move it away and resume from the previous checkpoint"
        ):
            train(config(tmp_path, name="mine", steps=6), resume=True)
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workload": "digitsmlp"}, "unknown workload 'digitsmlp'; did you mean digits-mlp"),
        ({"optimizer": "ars2base"}, "unknown optimizer 'ars2base'; did you mean ars2-base"),
        (
            {"optimizer": "ars2-sync", "options": {"roh": 1}},
            "optimizer ars2-sync has no setting 'roh'; did you mean rho",
        ),
        ({"options": {"rho": 1.0}}, "optimizer ars2-base has no setting 'rho'"),
        ({"optimizer": "ars2-lazy", "options": {"k": 1}}, "k=1 must be an integer >= 2"),
        ({"preset": "ful"}, "unknown preset 'ful'; did you mean full"),
        ({"name": "a/b"}, "a/b"),
        ({"name": ".."}, r"\.\."),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(
    settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, RunError), match=words):
        train(config(tmp_path, **settings))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("workload", ["digits-conv", "prose-mlp", pytest.param("modadd-59", marks=pytest.mark.slow)])
def test_the_other_workloads_train_too(workload: str, few_products: None, tmp_path: Path) -> None:
    run = train(
        config(
            tmp_path,
            workload=workload,
            optimizer="ars2-aga",
            steps=3,
            eval_every=3,
            preset="full",
            evaluations=1,
            curvature_samples=256,  # for speed
        )
    )
    assert run.steps["loss"].notna().all()
    assert {"loss", "lambda_max", "trace", "directional_edge_ratio", "adaptive_trace"} <= set(run.probes["measure"])
    assert len(run.spectra) > 0


@pytest.mark.slow
def test_modular_addition_is_grokked(tmp_path: Path) -> None:
    options = {"rho": 0.1, "k": 10, "aga_lambda": 0.1, "betas": [0.9, 0.98], "weight_decay": 1.0}
    run = train(
        TrainConfig.of(
            {
                "workload": "modadd-113",
                "optimizer": "ars2-aga",
                "out": str(tmp_path),
                "lr": 1e-3,
                "options": options,
                "steps": 3000,
                "until_accuracy": 0.99,
                "evaluations": 0,
                "preset": "economy",
                "seed": 42,
            }
        )
    )
    step = first_step(run, "test_accuracy", 0.99)
    assert step is not None
    assert step < 3000


def test_a_killed_run_resumes_bit_for_bit(warm: ForkServerContext, tmp_path: Path) -> None:
    settings = {"steps": 5000, "optimizer": "ars2-lazy", "preset": "full", "eval_every": 5000}
    started = TrainConfig.of({**settings, "out": str(tmp_path), "evaluations": 0})
    run = tmp_path / "digits-mlp-ars2-lazy-s0"
    process = warm.Process(target=train, args=(started,))
    process.start()
    try:
        while max(checkpoints(run), default=0) < 12:
            assert process.is_alive()
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    killed = Run.open(run)
    assert killed.status == "crashed"
    last = max(checkpoints(run))
    stop = last + 7
    resumed = train(config(tmp_path, **{**settings, "steps": stop}), resume=True)
    whole = train(config(tmp_path, **{**settings, "steps": stop, "name": "whole"}))
    ours, theirs = last_weights(whole), last_weights(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.steps["step"].tolist() == list(range(1, stop + 1))
