"""Words of a recorder about loops in which it sees nothing, too late, or twice; and constructors that leave nothing."""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops.training_loops import batches, descend, loss_of, mlp
from torch import nn

from lossscope.errors import LossscopeError
from lossscope.landscape.errors import LandscapeError, RecordingWarning, RunError
from lossscope.landscape.recording import run_claim
from lossscope.landscape.recording.faults import Faults, reason_of, say
from lossscope.landscape.recording.loss_instruments import LossInstruments
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

pytestmark = pytest.mark.filterwarnings("default::lossscope.landscape.errors.RecordingWarning")


def training() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = mlp()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder | None, count: int = 4) -> None:
    step = (lambda _: None) if recorder is None else recorder.step
    descend(model, optimizer, step, batches(count), loss_of)


def test_a_recorder_of_another_optimizer_says_at_once_that_it_sees_no_step(tmp_path: Path) -> None:
    model, optimizer = training()
    other = torch.optim.Adam(model.parameters())
    recorder = Recorder(tmp_path / "run", model, other)
    batch = batches(1)[0]
    loss_of(model, batch).backward()
    optimizer.step()
    with pytest.warns(RecordingWarning, match=r"recorder\.step\(\) was called and no step of Adam was seen yet"):
        recorder.step(0.5)
    with pytest.warns(RecordingWarning, match="nothing was recorded"):
        recorder.close(quiet=True)
    run = Run.open(tmp_path / "run")
    assert run.status == "failed"
    assert run.manifest["how_it_ended"] == "recorder.step() was called 1 times and no optimizer step was seen"


def test_a_loop_without_recorder_step_is_told_while_it_runs_and_fails(tmp_path: Path) -> None:
    model, optimizer = training()
    recorder = Recorder(tmp_path / "run", model, optimizer)
    with pytest.warns(RecordingWarning, match=r"10 optimizer steps were taken and recorder\.step\(\) was never called"):
        train(model, optimizer, None, 12)
    with pytest.warns(RecordingWarning, match="nothing was recorded"):
        recorder.close(quiet=True)
    assert (
        Run.open(tmp_path / "run").manifest["how_it_ended"] == "recorder.step() was never called in 12 optimizer steps"
    )


def test_a_call_before_the_optimizer_step_is_told(tmp_path: Path) -> None:
    model, optimizer = training()
    recorder = Recorder(tmp_path / "run", model, optimizer)

    def loop() -> None:
        for batch in batches(4):
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            recorder.step(loss)
            optimizer.step()
        recorder.close(quiet=True)

    with pytest.warns(RecordingWarning) as told:
        loop()
    words = " ".join(str(one.message) for one in told)
    assert "was called after the backward pass of the next step, so this is the loss of the next step" in words
    assert "the last optimizer step has no row" in words


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_zeroed_right_after_the_step_are_no_backward_pass(set_to_none: bool, tmp_path: Path) -> None:
    model, optimizer = training()
    recorder = Recorder(tmp_path / "run", model, optimizer)
    for batch in batches(4):
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        recorder.step(loss.item())
    recorder.close(quiet=True)
    assert "warnings" not in Run.open(tmp_path / "run").manifest


def test_a_cell_run_twice_is_told_in_the_words_of_python_and_force_replaces_the_run(tmp_path: Path) -> None:
    model, optimizer = training()
    first = Recorder(tmp_path / "run", model, optimizer)
    train(model, optimizer, first, 3)
    with pytest.raises(RunError, match=r"another Recorder of this process, at step 3: .*close\(\).*force=True"):
        Recorder(tmp_path / "run", model, optimizer)
    with pytest.warns(RecordingWarning, match="an earlier Recorder of this process at the same path was closed"):
        second = Recorder(tmp_path / "run", *training(), force=True)
    train(model, optimizer, first, 2)  # the earlier one records nothing any more
    train(*(second._model, second._optimizers[0]), second, 5)
    second.close(quiet=True)
    first.close(quiet=True)
    run = Run.open(tmp_path / "run")
    assert (run.status, run.steps["step"].tolist()) == ("finished", [1, 2, 3, 4, 5])


def test_a_folder_removed_between_two_runs_of_a_cell_holds_the_second_alone(tmp_path: Path) -> None:
    model, optimizer = training()
    recorder = Recorder(tmp_path / "run", model, optimizer)
    train(model, optimizer, recorder, 5)
    shutil.rmtree(tmp_path / "run")
    model, optimizer = training()
    with pytest.warns(RecordingWarning, match="an earlier Recorder"):
        recorder = Recorder(tmp_path / "run", model, optimizer)
    train(model, optimizer, recorder, 4)
    gc.collect()
    recorder.close(quiet=True)
    assert Run.open(tmp_path / "run").steps["step"].tolist() == [1, 2, 3, 4]


def test_a_program_that_changes_its_directory_keeps_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    model, optimizer = training()
    recorder = Recorder("runs/mine", model, optimizer, steps=4)
    monkeypatch.chdir(tmp_path / "b")
    train(model, optimizer, recorder)
    recorder.close(quiet=True)
    assert len(Run.open(tmp_path / "a/runs/mine").steps) == 4
    assert list((tmp_path / "b").iterdir()) == []


def test_the_second_rank_leaves_the_run_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = training()
    first = Recorder(tmp_path / "run", model, optimizer)
    monkeypatch.setattr(run_claim, "open_at", lambda path: None)  # as in another process
    with pytest.raises(RunError, match="already holds a run: pass force=True"):
        Recorder(tmp_path / "run", *training())

    def taken(*args: Any, **settings: Any) -> Any:
        raise RunError("run is being recorded by another process")

    monkeypatch.setattr(run_claim.RunStore, "create", taken)
    monkeypatch.setattr(run_claim, "_has_ranks", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with pytest.warns(RecordingWarning, match="another rank of this distributed training records the run"):
        second = Recorder(tmp_path / "run", *training(), force=True)
    train(second._model, second._optimizers[0], second)
    second.note(rank=1)
    second.close()
    assert (second.steps, second.lost) == (0, "")
    train(model, optimizer, first)
    first.close(quiet=True)
    assert len(Run.open(tmp_path / "run").steps) == 4


class Sharded(nn.Parameter):
    """Stands for a DTensor."""


def bad(case: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    model, optimizer = training()
    objective = Objective(model, CrossEntropy(), batches(1))
    match case:
        case "preset":
            return Recorder(path, model, optimizer, objective, "standart")
        case "optimizer":
            return Recorder(path, model, None, objective)
        case "empty list":
            return Recorder(path, model, [], objective)
        case "model":
            return Recorder(path, lambda x: x, optimizer)
        case "frozen":
            return Recorder(path, model.requires_grad_(False), optimizer)
        case "other objective":
            return Recorder(path, mlp(), optimizer, objective)
        case "no steps" | "text" | "fraction" | "flag" | "negative" | "many" | "checkpoints" | "resumption":
            return Recorder(path, model, optimizer, objective, **COUNTS[case])
        case "one minibatch":
            return Recorder(path, model, optimizer, minibatches=objective)
        case "sharded":
            monkeypatch.setitem(sys.modules, "torch.distributed.tensor", SimpleNamespace(DTensor=Sharded))
            model[0].weight = Sharded(model[0].weight.detach())
            return Recorder(path, model, optimizer)
        case "loss":
            return Recorder(path, model, optimizer, Objective(model, lambda m, b: F.relu(m(b[0])), batches(1)))
        case _:
            return Recorder(path, model, optimizer, config={"f": len})


COUNTS: dict[str, dict[str, Any]] = {
    "no steps": {"steps": 0},
    "text": {"steps": "300"},
    "fraction": {"steps": 300.0},
    "flag": {"steps": True},
    "negative": {"evaluations": -1},
    "many": {"evaluations": 10**9, "steps": 10**9},
    "checkpoints": {"checkpoints": -1},
    "resumption": {"resume_at": 2.5},
}
CASES: dict[str, tuple[type[Exception], str]] = {
    "preset": (LossscopeError, "did you mean standard"),
    "optimizer": (LandscapeError, r"must be a torch\.optim\.Optimizer, a list of them or a wrapper .*, got NoneType"),
    "empty list": (LandscapeError, r"must be a torch\.optim\.Optimizer, a list of them or a wrapper .*, got list"),
    "model": (LandscapeError, r"model must be a torch\.nn\.Module, got function"),
    "frozen": (LandscapeError, "no parameter with requires_grad=True"),
    "other objective": (LandscapeError, "is not one of the 4 trainable parameters"),
    "no steps": (LossscopeError, "steps must be an integer from 1 to 9007199254740992, got '0'"),
    "text": (LossscopeError, "steps must be an integer from 1 to 9007199254740992, got '300'"),
    "fraction": (LossscopeError, "steps must be an integer from 1 to .*, got '300.0'"),
    "flag": (LossscopeError, "steps must be an integer from 1 to .*, got 'True'"),
    "negative": (LossscopeError, "evaluations must be an integer from 0 to 100000, got '-1'"),
    "many": (LossscopeError, "evaluations must be an integer from 0 to 100000, got '1000000000'"),
    "checkpoints": (LossscopeError, "checkpoints must be an integer from 0 to 100000, got '-1'"),
    "resumption": (LossscopeError, "resume_at must be an integer from 0 to .*, got '2.5'"),
    "one minibatch": (LandscapeError, "at least 2 batches"),
    "sharded": (LandscapeError, r"'0\.weight' is a shard of a DTensor \(FSDP2, tensor parallelism\)"),
    "loss": (LossscopeError, "loss_fn must return one real number"),
    "config": (ValueError, "manifest.config.f has type builtin_function_or_method"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_constructor_that_fails_leaves_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error, words = CASES[case]
    with pytest.raises(error, match=words):
        bad(case, tmp_path / "run", monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_what_freezes_and_thaws_at_every_step_is_told_once(tmp_path: Path) -> None:
    model, optimizer = training()
    recorder = Recorder(tmp_path / "run", model, optimizer, preset="full")

    def toggled() -> None:
        for number in range(20):
            model[0].requires_grad_(number % 2 == 1)
            train(model, optimizer, recorder, 1)

    with pytest.warns(RecordingWarning) as given:
        toggled()
    recorder.close(quiet=True)
    assert [("joined" in str(one.message), "left" in str(one.message)) for one in given] == [
        (False, True),
        (True, False),
    ]
    assert len(Run.open(tmp_path / "run").manifest["warnings"]) == 2


def test_warnings_have_a_bound() -> None:
    faults = Faults("run")

    def many() -> None:
        for number in range(1000):
            faults.tell(f"word {number}", topic=number)

    with pytest.warns(RecordingWarning) as given:
        many()
    assert len(given) == len(faults.words) == 101
    assert faults.words[-1] == "more than 100 different warnings: the next ones are not given"


def test_given_steps_beyond_the_end_are_missing_and_told(tmp_path: Path) -> None:
    model, optimizer = training()
    objective = Objective(model, CrossEntropy(), batches(1))
    recorder = Recorder(tmp_path / "run", model, optimizer, objective, evaluate_at=[2, 50, 60], overhead=1)
    train(model, optimizer, recorder)
    with pytest.warns(RecordingWarning, match="evaluate_at names 50, 60, and the run ended at step 4"):
        recorder.close(quiet=True)
    run = Run.open(tmp_path / "run")
    assert run.probes["step"].unique().tolist() == [2]
    assert {"step": 4, "instrument": "curvature", "why": "evaluate_at names 50, 60, and the run ended at step 4"} in (
        run.manifest["curvature_gaps"]
    )


def test_an_interrupt_at_the_first_evaluation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = training()
    objective = Objective(model, CrossEntropy(), batches(1))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(LossInstruments, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Recorder(tmp_path / "run", model, optimizer, objective)
    assert list(tmp_path.iterdir()) == []
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_the_settings_of_every_group_and_the_seed_are_in_the_manifest(tmp_path: Path) -> None:
    model, _ = training()
    groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[2].parameters(), "lr": 0.5}]
    recorder = Recorder(tmp_path / "run", model, torch.optim.SGD(groups, momentum=0.9), seeds={"init": 0})
    recorder.close(quiet=True)
    manifest = Run.open(tmp_path / "run").manifest
    facts = manifest["optimizer_facts"]
    assert facts["class"] == "torch.optim.sgd.SGD"
    assert [one["settings"]["lr"] for one in facts["groups"]] == [1e-3, 0.5]
    assert [one["settings"]["momentum"] for one in facts["groups"]] == [0.9, 0.9]
    assert [one["parameters"] for one in facts["groups"]] == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]
    assert (manifest["seeds"], manifest["torch_seed"]) == ({"init": 0}, 0)


def test_reasons_are_short_and_lines_hold_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert reason_of(ValueError("x" * 20_000)) == "ValueError: " + "x" * 1000
    say("runs/a\x1b]0;title\x07b: done")
    assert capsys.readouterr().err == "runs/a\ufffd]0;title\ufffdb: done\n"
    faults = Faults("runs/a\x1b]0;title\x07b")
    with pytest.warns(RecordingWarning) as given, faults.guarded("curvature", 3):
        raise ValueError("\x1b[2Jall gone")
    assert str(given[0].message) == (
        "runs/a\ufffd]0;title\ufffdb: curvature could not be recorded at step 3: ValueError: \ufffd[2Jall gone; the "
        "training goes on"
    )
