"""`lossscope train` with every registered optimizer, and the three reports on each run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lossscope.cli.main import app
from lossscope.landscape.run import Run
from lossscope.optimizer import names
from required_settings import required

REPORTS = ("sharpness", "entropy", "flatness", "dynamics")
RATES = {"lion": 1e-3, "clion": 1e-3}  # the published 1e-4 is for long runs: 400 steps end at 66 %
RATES |= {"sophia-g": 0.01, "zo-gd": 0.01}
QUICK = ("ars2-sync",)  # an orthogonal factor and an ascent


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def trained(name: str, folder: Path, *more: str) -> Run:
    arguments = ["train", "--workload", "digits-mlp", "--optimizer", name, "--out", str(folder), "--json", *more]
    return Run.open(json.loads(told(*arguments))["run"])


def check_reports(run: Run, name: str) -> None:
    for kind in REPORTS:
        assert name in told("report", kind, str(run.path))
        assert json.loads(told("report", kind, str(run.path), "--format", "json"))["kind"] == kind


def check_objects(run: Run) -> None:
    """Check that every sampled matrix has finite spectra of weight, gradient and update."""
    of_steps = run.spectra[~run.spectra["object"].isin(["batch_gradient", "pair_gradient"])]
    samples = of_steps.groupby(["step", "tensor"])["object"].agg(set)
    assert len(samples) > 0
    assert all({"weight", "gradient", "update"} <= seen for seen in samples)
    assert run.spectra["norm"].notna().all()


@pytest.mark.parametrize("name", QUICK)
def test_training_lowers_the_loss_and_the_reports_work(name: str, few_products: None, tmp_path: Path) -> None:
    run = trained(name, tmp_path, "--steps", "60", "--set", "evaluations=2")
    losses = run.steps["loss"]
    assert all(map(math.isfinite, losses))
    assert losses.iloc[-20:].mean() < losses.iloc[:20].mean() - 0.01
    check_objects(run)
    check_reports(run, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_optimizer_learns_the_digits_and_the_reports_work(name: str, few_products: None, tmp_path: Path) -> None:
    needed = [word for key, value in required(name).items() for word in ("--set", f"options.{key}={value}")]
    needed += ["--lr", str(RATES[name])] if name in RATES else []
    run = trained(name, tmp_path, "--set", "evaluations=3", *needed)
    losses = run.steps["loss"]
    accuracy = run.steps["test_accuracy"].dropna().iloc[-1]
    assert len(losses) == 400
    assert all(map(math.isfinite, losses))
    if name == "zo-gd":  # one direction a step, of thousands
        assert losses.iloc[-20:].mean() < losses.iloc[0] - 0.05
        assert accuracy > 0.15
    else:
        assert losses.iloc[-20:].mean() < 0.5 * losses.iloc[0]
        assert accuracy > 0.85
    check_objects(run)
    check_reports(run, name)
    page = tmp_path / "all.html"
    for kind in REPORTS:
        told("report", kind, str(run.path), "--format", "html", "--output", str(page), "--force")
        assert page.read_text().endswith("</html>\n")
