"""The command line as a whole: help, version, exit codes, error messages, and start-up imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, TypeAlias

import pytest
import typer
from typer.testing import CliRunner

from lossscope import __version__
from lossscope.cli.main import app, main
from lossscope.landscape.experiments.ablation import Ablation, ablate
from lossscope.landscape.experiments.grid import Grid
from lossscope.landscape.run import open_runs
from lossscope.optimizer import names, settings

Command: TypeAlias = Callable[..., CompletedProcess[str]]
COMMAND = [sys.executable, "-c", "from lossscope.cli.main import main; main()"]


def lossscope(*arguments: str, cwd: Path | None = None) -> CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command in this process and in `tmp_path`; a traceback fails the test."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["lossscope", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        said = capfd.readouterr()
        return CompletedProcess(arguments, end.value.code, said.out, said.err)

    return command


def trained(out: Path, name: str = "mine", *more: str) -> Path:
    arguments = ["train", "--out", str(out), "--name", name, "--steps", "4", "--set", "evaluations=0", *more]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out / name


def commands() -> list[tuple[str, ...]]:
    """Return every command and group of the application."""
    found: list[tuple[str, ...]] = []

    def walk(command: Any, path: tuple[str, ...]) -> None:
        found.append(path)
        for name, one in getattr(command, "commands", {}).items():
            walk(one, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


def test_all_commands_are_found() -> None:
    assert {(), ("demo",), ("report", "dynamics"), ("list", "measures")} <= set(commands())


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(command: tuple[str, ...], option: str) -> None:
    result = CliRunner().invoke(app, [*command, option])
    assert result.exit_code == 0
    assert "-h, --help" in result.output
    if command not in {(), ("report",), ("list",)}:
        assert "Example: lossscope" in result.output


def test_the_version_is_printed_and_nothing_else_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["--version"], ["--version", "train"]):
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, result.output) == (0, f"lossscope {__version__}\n")
    assert not any(tmp_path.iterdir())


def test_the_root_without_a_command_prints_help() -> None:
    assert "Usage:" in CliRunner().invoke(app, []).output


@pytest.mark.parametrize(
    "command",
    [
        ("report", "--help"),
        ("report", "sharpness", "--help"),
        ("--help",),
        ("runs", "--help"),
        ("probe", "--help"),
        ("doctor", "--help"),
    ],
)
def test_help_loads_neither_torch_nor_matplotlib_nor_pandas(command: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom lossscope.cli.main import app\n"
        f"sys.argv = ['lossscope', *{command!r}]\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "loaded = [m for m in ('torch', 'matplotlib', 'pandas', 'scipy', 'sklearn') if m in sys.modules]\n"
        "sys.stderr.write(repr(loaded))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"


def test_train_says_where_the_run_is_and_json_says_it_to_programs(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["train", "--out", str(tmp_path), "--steps", "3", "--set", "evaluations=0", "--json"]
    )
    assert result.exit_code == 0, result.output
    fact = json.loads(result.stdout)
    assert Path(fact["run"]).name == "digits-mlp-ars2-base-s0"
    assert fact["steps"] == 3


def test_options_a_file_and_assignments_share_their_keys_and_the_later_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('steps = 9\noptimizer = "ars2-sync"\nevaluations = 0\n[options]\nrho = 0.2\neps = 1e-7\n')
    arguments = [
        "train",
        str(file),
        "--out",
        str(tmp_path),
        "--steps",
        "5",
        "--set",
        "options.rho=0.3",
        "--set",
        "steps=4",
    ]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    manifest = json.loads((tmp_path / "digits-mlp-ars2-sync-s0" / "run.json").read_text())
    assert manifest["config"]["steps"] == 4
    assert manifest["config"]["options"] == {"rho": 0.3, "eps": 1e-7}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--workload", "digit-mlp"], "did you mean digits-mlp"),
        (["train", "--optimizer", "ars2"], "did you mean ars or ars2-"),
        (["train", "--set", "step=3"], "unknown key 'step'; did you mean steps"),
        (["train", "--set", "steps=many"], "must be an integer"),
        (["train", "--name", "../x"], "../x"),
        (["train", "absent.toml"], "absent.toml cannot be read"),
        (["train", "--name", ""], "name"),
        (["train", "--seed", "99999999999999999999"], "must lie between 0 and"),
        (["train", "--set", "threads=100000"], "must lie between 1 and"),
        (["train", "--optimizer", "adamw", "--set", "options.betas=[0.9]"], "must be two numbers in [0, 1)"),
        (["train", "--optimizer", "ars2-base", "--set", "options.rho=0.5"], "has no setting 'rho'"),
        (["train", "--optimizer", "ars2-sync", "--set", "options.ns_dtype=int8"], "'auto'"),
        (["train", "--resume", "--name", "absent"], "absent"),
        (["report", "sharpness", "absent"], "absent"),
        (["runs", "absent"], "absent"),
    ],
)
def test_a_known_error_is_one_line_on_stderr_and_exit_code_1(
    arguments: list[str], words: str, inside: Command, tmp_path: Path
) -> None:
    done = inside(*arguments)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_known_error_of_a_fresh_process_is_one_line_too(tmp_path: Path) -> None:
    done = lossscope("train", "--workload", "digit-mlp", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_an_existing_run_needs_resume_or_force(inside: Command, tmp_path: Path) -> None:
    trained(tmp_path)
    before = (tmp_path / "mine" / "run.json").read_bytes()
    again = ["train", "--out", str(tmp_path), "--name", "mine", "--steps", "4", "--set", "evaluations=0"]
    done = inside(*again)
    assert done.returncode == 1
    assert "--resume" in done.stderr
    assert "--force" in done.stderr
    assert (tmp_path / "mine" / "run.json").read_bytes() == before
    assert inside("train", "--out", str(tmp_path), "--name", "mine", "--resume", "--steps", "6").returncode == 0
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["steps"] == 6
    assert inside(*again, "--force").returncode == 0
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["steps"] == 4


def test_an_unwritable_folder_is_one_line(inside: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = inside("train", "--out", str(tmp_path / "file" / "runs"), "--steps", "1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_a_loss_that_became_nan_is_one_line_and_the_report_works(
    inside: Command, few_products: None, tmp_path: Path
) -> None:
    arguments = [
        "train",
        "--out",
        str(tmp_path),
        "--name",
        "hot",
        "--optimizer",
        "sgd",
        "--lr",
        "1e30",
        "--steps",
        "30",
    ]
    done = inside(*arguments)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "the loss became" in done.stderr
    report = inside("report", "sharpness", str(tmp_path / "hot"))
    assert report.returncode == 0, report.stderr
    assert "failed" in report.stdout


def test_a_garbled_table_and_a_newer_manifest_are_one_line_each(inside: Command, tmp_path: Path) -> None:
    run = trained(tmp_path)
    (run / "steps.parquet").write_bytes(b"PAR1 and nothing else")
    done = inside("report", "sharpness", str(run))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "steps.parquet" in done.stderr
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    done = inside("report", "sharpness", str(run))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "99" in done.stderr


def test_a_wrong_table_in_a_file_is_not_hidden_by_an_assignment(inside: Command, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("options = 3\n")
    done = inside("train", str(file), "--set", "options.rho=0.1")
    assert done.returncode == 1
    assert "options must be" in done.stderr


def test_a_dtype_is_given_by_name(tmp_path: Path) -> None:
    run = trained(tmp_path, "half", "--set", "options.ns_dtype=bfloat16")
    full = trained(tmp_path, "full")
    assert json.loads((run / "run.json").read_text())["config"]["options"] == {"ns_dtype": "bfloat16"}
    (half_run,), (full_run,) = open_runs(run), open_runs(full)
    assert half_run.steps["loss"].tolist() != full_run.steps["loss"].tolist()


def test_the_demo_replaces_no_page_without_force(inside: Command, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    said = inside("demo", "--out", str(tmp_path), "--steps", "1")
    assert said.returncode == 1
    assert "report.html exists; add --force" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize("out", ["file", "file/below", "link"])
def test_the_demo_trains_nothing_where_it_can_make_no_folder(inside: Command, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    said = inside("demo", "--out", str(tmp_path / out), "--steps", "1")
    assert said.returncode == 1
    assert said.stderr == f"error: {tmp_path / out.partition('/')[0]} is no folder; choose another folder with --out\n"


def test_the_demo_leaves_its_runs_and_two_pages_and_prints_the_comparison(
    inside: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quickly(grid: Grid, *, jobs: int, **more: Any) -> Ablation:
        """Train as the demo does, in this process and with curvature of few samples, for speed."""
        return ablate(replace(grid, settings={**grid.settings, "curvature_samples": 128}), backend="sequential", **more)

    monkeypatch.setattr("lossscope.cli.demo.EVALUATED", (0.25, 0.5, 1.0))
    monkeypatch.setattr("lossscope.cli.demo.SEEDS", 2)
    monkeypatch.setattr("lossscope.landscape.experiments.ablation.ablate", quickly)
    arguments = ["demo", "--out", str(tmp_path / "demo"), "--steps", "12"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    runs = {f"{arm}-s{seed}" for arm in ("ars2-base", "ars2-sync", "adamw@rms") for seed in range(2)}
    assert {path.name for path in (tmp_path / "demo").iterdir()} == runs | {"report.html", "verdict.html"}
    assert "worst, relative" in result.stdout
    assert "NOT JUDGED: 2 pairs" in result.stdout
    assert re.search(r"Recording took \d+ % of the training time, with 3 evaluations a run", result.stdout)
    assert str(tmp_path / "demo" / "verdict.html") in result.stdout
    page = (tmp_path / "demo" / "report.html").read_text()
    for figure in ("Training loss", "λ_max", "entropy", "Shear angle", "Fisher energy"):
        assert figure in page
    assert "average, balanced" in (tmp_path / "demo" / "verdict.html").read_text()
    again = inside(*arguments)
    assert again.returncode == 1
    assert "--force" in again.stderr
    nested = inside("demo", "--out", str(tmp_path / "demo" / "ars2-base-s0"))
    assert nested.returncode == 1
    assert "is a run itself" in nested.stderr


@pytest.mark.slow
def test_the_whole_demo_supports_that_the_ascent_flattens(tmp_path: Path) -> None:
    done = lossscope("demo", "--out", str(tmp_path / "demo"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kind"] == "compare"
    assert "SUPPORTED" in done.stdout
    assert "more than a factor" not in done.stdout  # the evaluations stand where the arms are compared
    runs = open_runs(tmp_path / "demo")
    assert len(runs) == 18
    for run in runs:
        rows = run.probes[run.probes["measure"].isin(["adaptive_lambda_max", "adaptive_trace", "balanced_trace"])]
        assert rows.groupby("measure").size().tolist() == [3, 3, 3]


def test_usage_errors_exit_2(inside: Command) -> None:
    assert inside("train", "--steps", "x").returncode == 2
    assert inside("nothing").returncode == 2


def test_the_list_of_optimizers_has_sources_and_defaults_and_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(CliRunner().invoke(app, ["list", "optimizers", "--json"]).output)["optimizers"]
    assert [row["name"] for row in rows] == list(names())
    assert all(row["source"] and row["description"] for row in rows)
    defaults = {row["name"]: row["defaults"] for row in rows}
    required = {row["name"]: row["required"] for row in rows}
    assert all({*required[name], *defaults[name]} == set(settings(name)) for name in names())
    assert defaults["looksam"] | {"k": 5, "alpha": 0.7, "base": "sgd"} == defaults["looksam"]
    for columns in (80, 120):
        monkeypatch.setattr("lossscope.cli.catalogue.text_width", lambda columns=columns: columns)
        text = CliRunner().invoke(app, ["list", "optimizers"]).output
        assert columns - 40 < max(map(len, text.splitlines())) <= columns
        assert [line for line in text.splitlines() if not line.startswith(" ")] == list(names())
        assert text.count("    source: ") == len(rows)
        assert "betas=(0.9, 0.999)" in text
        assert "base=sgd, rho=0.05; the others as the base has them" in text
        assert "None" not in text


def test_the_list_of_workloads_has_the_settings_that_are_usual_there() -> None:
    text = CliRunner().invoke(app, ["list", "workloads"]).output
    assert "400 steps of 128, lr=0.1 for sgd" in text
    assert "weight_decay=1.0" in text


def test_the_lists_name_everything_and_parse_as_json() -> None:
    for kind, name in (
        ("optimizers", "adamw@rms"),
        ("workloads", "modadd-113"),
        ("measures", "directional_edge_ratio"),
    ):
        assert name in CliRunner().invoke(app, ["list", kind]).output
        rows = json.loads(CliRunner().invoke(app, ["list", kind, "--json"]).output)[kind]
        assert name in {row["name"] for row in rows}
