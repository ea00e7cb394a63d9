"""`lossscope diff`: runs and files, the loss between them, two seeds, and wrong input."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from lossscope.cli.main import app
from lossscope.errors import LossscopeError
from lossscope.landscape import TrainConfig, diff, train
from lossscope.probes import CrossEntropy, Objective

MINE = """
import torch
from lossscope.probes import CrossEntropy, Objective

def objective():
    torch.manual_seed(5)
    data = [(torch.randn(12, 3), torch.arange(12) % 2)]
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return Objective(net, CrossEntropy(), data)
"""


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["diff", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def found(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["diff", *arguments, "--format", "json"], catch_exceptions=False)
    return dict(json.loads(result.output))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diff")
    (folder / "mine.py").write_text(MINE)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        torch.save(net.state_dict(), folder / f"{name}.pt")
        save_file(net.state_dict(), folder / f"{name}.safetensors")
    runs = folder / "runs"
    for arm, optimizer, seeds in (("one", "adamw", (0, 1, 2)), ("two", "ars2-base", (0,))):
        for seed in seeds:
            settings = {"workload": "digits-mlp", "optimizer": optimizer, "arm": arm, "seed": seed, "steps": 4}
            place = {"evaluations": 0, "checkpoints": 2, "name": f"{arm}-s{seed}", "out": str(runs)}
            train(TrainConfig.of(settings | place))
    return folder


def test_two_runs_stand_beside_two_seeds_and_have_the_loss_of_their_workload(folder: Path) -> None:
    a, b = str(folder / "runs" / "one-s0"), str(folder / "runs" / "two-s0")
    text = invoke(a, b, "--points", "5")
    assert "A: one-s0 at step 4; B: two-s0 at step 4" in text
    assert "nearer than the one pair of two seeds of one optimizer" in text
    assert "A and B began at the same initial weights, two seeds do not" in text
    report = found(a, b, "--points", "5")
    assert report["kind"] == "difference"
    assert list(report["figures"]) == ["modules", "path"]
    numbers = diff(a, b, points=5)
    assert [pair.name for pair in numbers.seeds] == ["one-s0, one-s1 at step 4"]
    assert numbers.change is not None
    assert numbers.path is not None
    assert numbers.change.loss_a == pytest.approx(numbers.path.losses[0], rel=1e-6)
    assert numbers.change.loss_b == pytest.approx(numbers.path.losses[-1], rel=1e-6)
    assert numbers.unit == "nats"


def test_checkpoints_of_one_run_are_named_by_their_step(folder: Path) -> None:
    run = str(folder / "runs" / "one-s0")
    numbers = diff(f"{run}@0", run, points=3, null=[str(folder / "runs" / f"one-s{seed}") for seed in range(3)])
    assert (numbers.weights.a, numbers.weights.b) == ("one-s0 at step 0", "one-s0 at step 4")
    assert len(numbers.seeds) == 3  # all pairs of those that are named
    beside = diff(f"{run}@0", run, weights_only=True).seeds
    assert [pair.name for pair in beside] == ["one-s0, one-s1 at step 4"]  # not at step 0
    with pytest.raises(LossscopeError, match="has no checkpoint at step 3: there is one at 0, "):
        invoke(f"{run}@3", run)


def test_files_have_distances_alone_and_the_loss_that_is_given(folder: Path) -> None:
    files = (str(folder / "a.pt"), str(folder / "b.safetensors"))
    text = invoke(*files)
    assert "weights alone have no loss: give one by --objective FILE.py:NAME" in text
    assert "Loss change by module" not in text
    with_loss = found(*files, "--objective", f"{folder / 'mine.py'}:objective", "--points", "5")
    rows = {row["module"]: row for row in with_loss["tables"]["loss_change"]["rows"]}
    assert list(rows) == ["0", "2", "all", "remainder", "loss change"]
    parts = sum(rows[name]["sum"]["value"] for name in ("0", "2"))
    assert parts == pytest.approx(rows["all"]["sum"]["value"], rel=1e-9)
    assert parts + rows["remainder"]["sum"]["value"] == pytest.approx(rows["loss change"]["sum"]["value"], rel=1e-6)


def test_weights_only_evaluates_no_loss(folder: Path) -> None:
    a, b = str(folder / "runs" / "one-s0"), str(folder / "runs" / "one-s1")
    numbers = diff(a, b, weights_only=True)
    assert numbers.path is None
    assert numbers.same_start is False
    assert [pair.name for pair in numbers.seeds] == ["one-s0, one-s2 at step 4"]  # A and B are no null of themselves
    assert numbers.seeds[0].path is None
    assert "Loss on the straight path" not in invoke(a, b, "--weights-only")


def test_the_same_numbers_in_two_files_are_at_distance_zero(folder: Path) -> None:
    text = invoke(str(folder / "a.pt"), str(folder / "a.safetensors"), "--objective", f"{folder / 'mine.py'}:objective")
    assert "A and B hold the same weights: their distance is 0" in text
    assert "there is no path between them" in text


def test_batch_norm_keeps_the_statistics_of_a_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    objective = Objective(net, CrossEntropy(), [(torch.randn(12, 3), torch.arange(12) % 2)])
    torch.save(net.state_dict(), tmp_path / "a.pt")
    for _ in range(5):
        net(torch.randn(9, 3) + 2.0)
    with torch.no_grad():
        net[0].weight.add_(0.3)
    torch.save(net.state_dict(), tmp_path / "b.pt")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    numbers = diff(tmp_path / "a.pt", tmp_path / "b.pt", objective=objective, points=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert numbers.change is not None
    assert numbers.path is not None
    assert numbers.path.restated is not None
    assert numbers.change.own_loss_b == pytest.approx(objective_at(objective, tmp_path / "b.pt"))
    assert abs(numbers.change.own_loss_b - numbers.change.loss_b) > 1e-4
    assert any("B has other buffers" in note for note in numbers.notes)


def objective_at(objective: Objective, file: Path) -> float:
    objective.model.load_state_dict(torch.load(file))
    return objective.value()


def test_a_diverged_seed_beside_is_no_reason_to_refuse(folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(folder / "runs", runs)
    (checkpoint,) = (runs / "one-s1" / "checkpoints").glob("step-000000004")
    weights = load_file(checkpoint / "weights.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: torch.full_like(weights[first], math.nan)}, checkpoint / "weights.safetensors")
    numbers = diff(runs / "one-s0", runs / "two-s0", weights_only=True)
    assert numbers.seeds == ()
    assert "was altered" in numbers.missing["two seeds: one-s0, one-s1 at step 4"]
    with pytest.raises(LossscopeError, match="was altered"):
        diff(runs / "one-s0", runs / "two-s0", weights_only=True, null=[runs / "one-s0", runs / "one-s1"])


def test_a_loss_that_is_not_finite_leaves_the_distances(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    data = [(torch.randn(12, 3), torch.arange(12) % 2)]
    objective = Objective(net, lambda model, batch: model(batch[0]).sum() * math.nan, data)
    for name in ("a.pt", "b.pt"):
        torch.save(nn.Linear(3, 2).state_dict(), tmp_path / name)
    numbers = diff(tmp_path / "a.pt", tmp_path / "b.pt", objective=objective)
    assert numbers.path is None
    assert "nan" in numbers.missing["loss"]
    assert numbers.weights.whole.distance > 0


def test_an_html_page_is_written_once(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = (str(folder / "a.pt"), str(folder / "b.pt"), "--format", "html", "--output", str(page))
    invoke(*arguments)
    assert "Difference of two checkpoints" in page.read_text()
    with pytest.raises(LossscopeError, match="--force"):
        invoke(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a.pt", "a.pt"), "A and B are the same"),
        (("a.pt", "nowhere"), "neither a run nor a file of weights at .*nowhere: give RUN, RUN@STEP or FILE"),
        (("a.pt", "code.pt"), "loading it could run code"),
        (("a.pt", "runs/one-s0"), "are of different architectures: 0.weight has the shape"),
        (("a.pt", "b.pt", "--weights-only", "--objective", "x.py:y"), "give one of --weights-only and --objective"),
        (("a.pt", "b.pt", "--null", "a.pt", "--null", "runs/one-s0"), "of runs alone or of files alone"),
        (("a.pt", "b.pt", "--null", "runs/one-s0", "--null", "runs/two-s0"), "two or more seeds of one optimizer"),
    ],
)
def test_wrong_input_is_one_line(
    folder: Path, arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    if not Path("code.pt").exists():
        torch.save(nn.Linear(2, 2), "code.pt")
    with pytest.raises(LossscopeError, match=words) as caught:
        CliRunner().invoke(app, ["diff", *arguments], catch_exceptions=False)
    assert "\n" not in str(caught.value)
