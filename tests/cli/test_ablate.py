"""`lossscope ablate`: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lossscope.cli.main import app
from lossscope.landscape.errors import ConfigError, RunError, TrainingError
from lossscope.landscape.experiments import plan

ARMS = ("base", "sync", "adamw")
GRID = """
name = "tiny"
steps = 6
lr = 1e-2
level = 2.0
seeds = 2
evaluations = 3
curvature_samples = 32
measures = ["lambda_max"]
{more}
[arms]
{arms}
base = {{ optimizer = "ars2-base" }}
sync = {{ optimizer = "ars2-sync" }}
adamw = {{ optimizer = "adamw@rms" }}

[contrasts]
ascent = ["sync", "base"]
factor = ["base", "adamw"]
"""


def ablate(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["ablate", *arguments, "--backend", "sequential"], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a grid that is trained, one arm of it without success."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.toml").write_text(GRID.format(more="", arms='far = { optimizer = "sgd", lr = 1e30 }'))
    trained(folder)
    return folder


def trained(folder: Path, *more: str) -> Any:
    result = ablate(str(folder / "tiny.toml"), "--out", str(folder / "runs"), *more)
    assert result.exit_code == 0, result.output
    return result


def test_the_table_names_contrasts_lost_runs_and_controls(folder: Path) -> None:
    said = trained(folder).output
    assert said.startswith("tiny: 8 runs of 6 steps on digits-mlp, 6 finished, 2 diverged; ")
    assert "far-s1 diverged: the loss became nan at step" in said
    for words in ("ascent", "sync / base", "factor", "at training loss", "not judged", "6 are needed"):
        assert words in said
    assert "Ascents that raised the loss: sync " in said
    assert "Step lengths at equal energy, promised to be equal: base / adamw " in said
    assert f"lossscope compare sync base --in {folder / 'runs' / 'tiny'}" in said


def test_json_and_csv_hold_the_numbers_of_each_seed(folder: Path) -> None:
    file = folder / "values.csv"
    found: dict[str, Any] = json.loads(trained(folder, "--json", "--csv", str(file)).output)
    assert (found["name"], found["finished"]) == ("tiny", 6)
    assert found["level"] == 2.0
    assert [one["name"] for one in found["contrasts"]] == ["ascent", "factor"]
    assert [one["name"] for one in found["lost"]] == ["far-s0", "far-s1"]
    assert found["controls"]["ascents"][0]["taken"] == 6
    with file.open() as rows:
        lines = list(csv.DictReader(rows))
    assert [line["run"] for line in lines] == [f"{arm}-s{seed}" for seed in (0, 1) for arm in ("far", *ARMS)]
    assert all(float(line["lambda_max"]) > 0 for line in lines if line["arm"] == "base")
    assert lines[0]["status"] == "diverged"
    assert lines[0]["lambda_max"] == ""
    with pytest.raises(RunError, match=r"values\.csv exists; choose another file with --csv"):
        ablate(str(folder / "tiny.toml"), "--out", str(folder / "runs"), "--csv", str(file))


def test_a_plan_trains_nothing_and_tells_the_smallest_effect(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(GRID.format(more="", arms=""))
    result = ablate(str(file), "--out", str(tmp_path / "runs"), "--plan", "--seeds", "10", "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert "tiny: 30 runs in" in result.output
    assert "30 absent" in result.output
    assert "10 pairs show a sharpness ratio of 0.91 or less with 80 % power" in result.output
    assert not (tmp_path / "runs").exists()


def test_a_plan_is_json_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untimed = partial(plan.planned, time_arms=False)
    monkeypatch.setattr(plan, "planned", untimed)
    file = tmp_path / "tiny.toml"
    file.write_text(GRID.format(more="", arms=""))
    result = ablate(str(file), "--out", str(tmp_path / "runs"), "--plan", "--seeds", "1", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["runs"], found["states"], found["smallest"]) == (3, {"absent": 3}, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.toml",), "cannot be read"),
        (("{file}", "--seeds", "1000000"), r"the grid has 3,000,000 runs"),
        (("{file}", "--level", "deep"), "level must be a training loss above 0"),
        (("{file}", "--workload", "mine.py"), r"is not FILE\.py:NAME"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(GRID.format(more="", arms=""))
    with pytest.raises(ConfigError, match=words):
        ablate(*(one.format(file=file) for one in arguments), "--out", str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_without_evaluations_there_is_no_table_of_contrasts(tmp_path: Path) -> None:
    file = tmp_path / "few.toml"
    settings = 'workload = "digits-mlp"\nsteps = 2\nseeds = 1\nevaluations = 0\n'
    arms = '[arms]\na = { optimizer = "sgd" }\nb = { optimizer = "adamw" }\n[contrasts]\nrule = ["a", "b"]\n'
    file.write_text(settings + arms)
    result = ablate(str(file), "--out", str(tmp_path / "runs"))
    assert result.exit_code == 0
    assert "Curvature was not evaluated (evaluations = 0), so that no contrast has a number." in result.output
    assert "contrast  " not in result.output
    assert "lossscope compare" not in result.output


def test_it_fails_if_no_run_could_be_trained(tmp_path: Path) -> None:
    file = tmp_path / "far.toml"
    file.write_text('steps = 4\nseeds = 1\nevaluations = 0\n[arms]\nfar = { optimizer = "sgd", lr = 1e30 }\n')
    with pytest.raises(TrainingError, match="none of 1 runs could be trained; far-s0: the loss became nan"):
        ablate(str(file), "--out", str(tmp_path / "runs"))
