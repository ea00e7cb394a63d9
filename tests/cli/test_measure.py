"""`lossscope measure`: its price, the run that every report reads, and one line for what it refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lossscope.cli.main import main
from lossscope.landscape.run import Run

MINE = """
import torch
from lossscope.probes import CrossEntropy, Objective

def objective():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    return Objective(net, CrossEntropy(), [(x, torch.arange(40) % 2)])

def infinite():
    return Objective(objective().model, lambda model, x: model(x).sum() * float("inf"), [torch.ones(1, 3)])
"""
Called = Callable[..., tuple[int, str, str]]


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Return a function that runs the command line beside two checkpoints in `out` and a loss in `mine.py`."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    for step in (10, 20):
        torch.manual_seed(step)
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        Path(f"out/checkpoint-{step}").mkdir(parents=True)
        torch.save(net.state_dict(), f"out/checkpoint-{step}/pytorch_model.bin")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lossscope", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.mark.parametrize("form", ["text", pytest.param("html", marks=pytest.mark.slow)])
def test_every_report_reads_the_run_and_a_comparison_says_why_it_judges_nothing(form: str, called: Called) -> None:
    code, said, _ = called("measure", "out", "--objective", "mine.py:objective", "--measures", "lambda_max,trace,loss")
    assert code == 0
    assert "lossscope report sharpness runs/measured-out" in said
    assert said.count("measured") >= 2
    pages = ("overview", "sharpness", "entropy", "flatness", "dynamics") if form == "html" else ()
    for report in (*pages, "all"):
        code, said, error = called("report", report, "runs/measured-out", "--format", form)
        assert (code, error) == (0, "")
        assert "2 checkpoints were measured, of steps 10 to 20; the loss on the data of the measurement" in plain(said)
    assert "Weights at each checkpoint: mean [range over matrices]" in plain(said)
    for command in (["runs"], ["export", "runs/measured-out", "--output", "tables"], ["watch", "runs/measured-out"]):
        code, _, error = called(*command)
        assert (code, error) == (0, "")
    called("measure", "out/checkpoint-10", "--into", "runs/other")
    code, said, _ = called("report", "sharpness", "runs/other")
    assert "One checkpoint was measured, of step 10, without a loss." in plain(said)
    assert "lossscope measure CKPT... --objective FILE.py:NAME" in plain(said)
    code, said, error = called("compare", "runs/measured-out", "runs/other")
    assert "NOT JUDGED" in said
    code, _, error = called("probe", "runs/measured-out")
    assert (code, error.count("\n")) == (1, 1)
    assert "repeat `lossscope measure` into it with more --measures" in error


def plain(said: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", said).split())


def test_a_second_call_says_what_is_finished_and_json_has_it_all(called: Called) -> None:
    assert called("measure", "out/checkpoint-10", "--into", "runs/a")[0] == 0
    code, said, _ = called("measure", "out", "--into", "runs/a", "--json")
    found = json.loads(said)
    assert [one["measured"] for one in found["checkpoints"]] == [False, True]
    assert [one["step"] for one in found["checkpoints"]] == [10, 20]
    assert found["rows"] == 7
    code, said, _ = called("measure", "out", "--into", "runs/a")
    assert (code, said.count("finished before")) == (0, 2)
    assert "No new row" in said
    assert "nothing: every checkpoint is finished" in called("measure", "out", "--into", "runs/a", "--dry-run")[1]


def test_the_price_is_told_before_and_above_an_hour_asks(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said, _ = called("measure", "out", "--objective", "mine.py:objective", "--dry-run")
    assert code == 0
    assert "for 2 checkpoints of 50 parameters: matrices" in said
    assert "measures of the loss at most" in said
    assert not Path("runs").exists()
    monkeypatch.setattr("lossscope.cli.measure._LONG", 0.0)
    code, _, error = called("measure", "out")
    assert code == 1
    assert "add --yes, or take fewer checkpoints or --measures" in error
    assert called("measure", "out", "--yes")[0] == 0
    code, said, _ = called("measure", "out", "--objective", "mine.py:infinite", "--dry-run", "--into", "runs/b")
    assert (code, "measures of the loss unknown (" in said) == (0, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["measure"], "no checkpoint is given"),
        (["measure", "nowhere"], "there is no file or folder nowhere"),
        (["measure", "."], "holds no checkpoint"),
        (["measure", "out", "--steps", "1"], "--steps names 1, but 2 checkpoints were found"),
        (["measure", "out", "--steps", "1,x"], "--steps 'x' is no step"),
        (["measure", "out", "--steps", "5,5"], "are both of step 5"),
        (["measure", "out", "--measures", "trace"], "--measures trace are of a loss"),
        (["measure", "out", "--objective", "mine.py:objective", "--hf", "out"], "--objective and --hf are two losses"),
        (["measure", "out", "--text", "mine.py"], "--text belongs to --hf: give that, too"),
        (
            ["measure", "out", "--objective", "mine.py:objective", "--samples", "3"],
            "--samples belongs to --hf or --timm",
        ),
        (["measure", "out", "--hf", "out"], "--hf needs --text FILE"),
        (["measure", "out", "--timm", "resnet18"], "--timm needs --images FOLDER"),
        (["measure", "out", "--hf", "out", "--text", "mine.py"], "there is no out/config.json"),
        (["measure", "out", "--no-matrices"], "nothing is left to measure"),
        (["measure", "out", "--objective", "mine.py:nothing"], "mine.py has no 'nothing'"),
        (["measure", "out", "--objective", "mine.py:objective", "--measures", "traces"], "unknown measure 'traces'"),
        (["measure", "out", "--objective", "mine.py:objective", "--max-products", "1"], "--max-products 1 is too few"),
        (["measure", "out", "--into", "out"], "holds files but no run"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: list[str], says: str, called: Called) -> None:
    code, said, error = called(*words)
    assert (code, said, error.count("\n")) == (1, "", 1)
    assert says in error
    assert not Path("runs").exists()


def test_steps_may_be_given_and_stand_in_the_run(called: Called) -> None:
    assert called("measure", "out", "--steps", "100,7", "--into", "runs/a")[0] == 0
    assert Run.open("runs/a").steps["step"].tolist() == [7, 100]
