"""`lossscope probe`: output, one-line errors and exit codes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lossscope.cli import main as command
from lossscope.cli.main import app
from lossscope.landscape.errors import ConfigError, LandscapeError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.storage.schema import columns


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of a workload with checkpoints at 0, 1, 2 and 3."""
    out = tmp_path_factory.mktemp("trained")
    arguments = [
        "train",
        "--out",
        str(out),
        "--name",
        "a",
        "--steps",
        "3",
        "--preset",
        "economy",
        "--set",
        "evaluations=0",
    ]
    assert CliRunner().invoke(app, [*arguments, "--optimizer", "adamw"], catch_exceptions=False).exit_code == 0
    return out / "a"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "a"))


def probe(*arguments):
    return CliRunner().invoke(app, ["probe", *map(str, arguments)], catch_exceptions=False)


def test_it_prints_every_number_with_its_bound_and_the_cost_of_every_call(run):
    result = probe(run, "--measures", "loss,lambda_max,trace", "--rel", "10%", "--max-products", "12")
    assert result.exit_code == 0
    assert result.stderr == ""
    measured, cost = result.stdout.split("\nCost\n")
    for words in ("loss", "lambda_max", "trace", "bound met", "±", "lossscope"):
        assert words in measured
    for words in ("products", "time", "gradients", "spectrum"):
        assert words in cost
    assert "Added 3 rows; read them with" in result.stdout
    assert f"lossscope report sharpness {run}" in result.stdout


def test_json_is_one_object_with_every_column_of_the_table(run):
    result = probe(
        run, "--measures", "lambda_max,density", "--rel", "0.1", "--max-products", "30", "--seed", "7", "--json"
    )
    found = json.loads(result.stdout)
    assert set(found) == {
        *("schema", "run", "steps", "rows", "densities", "curves", "unmet", "absent", "notes", "products", "seconds")
    }
    assert (found["schema"], found["run"], found["steps"], found["densities"]) == (1, str(run), [3], 1)
    (row,) = found["rows"]
    assert tuple(row) == columns("probes")
    assert (row["measure"], row["step"], row["seed"], row["stderr"]) == ("lambda_max", 3, 7, None)
    assert found["products"] == row["products"]
    assert row["low"] <= row["value"] <= row["high"]
    written = Run.open(run).probes.iloc[-1]
    assert written["value"] == row["value"]
    assert written["gradients"] == row["gradients"] > 0


def test_checkpoints_come_as_options_as_a_list_or_all(run):
    def steps(*arguments):
        return json.loads(probe(run, "--measures", "loss", "--json", *arguments).stdout)["steps"]

    assert steps() == [3]
    assert steps("--checkpoint", 3, "--checkpoint", "0") == [0, 3]
    assert steps("--checkpoint", "0,3") == [0, 3]
    assert steps("--checkpoint", "all")[0] == 0


def test_what_is_absent_and_what_missed_its_bound_is_said(run):
    result = probe(run, "--measures", "loss,metric,trace", "--checkpoint", "0", "--rel", "0.1%", "--max-products", "8")
    assert "Not measured" in result.stdout
    assert "second moment" in result.stdout
    assert "Bounds not met: trace; raise --max-products or --rel." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "2000"], "has no checkpoint at step 2000: there is one at 0,"),
        (["--checkpoint", "last"], "--checkpoint 'last' is no step"),
        (["--checkpoint", "all,4"], "all cannot be combined with steps"),
        (["--measures", "R_dir"], "unknown measure 'R_dir'"),
        (["--measures", "lambda_mx"], "did you mean lambda_max"),
        (["--measures", "directional_edge_ratio"], "recorded during training only"),
        (["--measures", ","], "--measures names nothing"),
        (["--rel", "0"], "--rel 0 is out of range"),
        (["--rel", "100%"], "--rel 100% is out of range"),
        (["--rel", "nan"], "--rel nan is out of range"),
        (["--rel", "little"], "--rel 'little' is no number"),
        (["--max-products", "3"], "--max-products 3 is too few for spectrum: need at least 9"),
        (["--max-products", "0"], "--max-products 0 is out of range"),
        (["--objective", "absent.py:objective"], "there is no file absent.py"),
        (["--objective", "/dev/zero:objective"], "/dev/zero is no regular file"),
        (["--engine", "pyhessian", "--measures", "lambda_min"], "pyhessian has no lambda_min"),
    ],
)
def test_a_known_error_is_one_line_and_exit_code_1(trained, arguments, words, monkeypatch, capsys):
    before = (trained / "run.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["lossscope", "probe", str(trained), *arguments])
    with pytest.raises(SystemExit) as end:
        command.main()
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (1, "")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert (trained / "run.json").read_bytes() == before


def test_a_run_that_is_not_there_has_no_checkpoint_or_is_live_is_a_known_error(tmp_path):
    with pytest.raises(LandscapeError, match="does not exist"):
        probe(tmp_path / "nothing")
    store = RunStore.create(tmp_path / "a", {})
    with pytest.raises(LandscapeError, match="is being recorded"):
        probe(tmp_path / "a")
    store.close("finished", "done")
    with pytest.raises(LandscapeError, match="has no checkpoint"):
        probe(tmp_path / "a")


def test_usage_errors_exit_2(trained):
    assert CliRunner().invoke(app, ["probe"]).exit_code == 2
    assert CliRunner().invoke(app, ["probe", str(trained), "--engine", "other"]).exit_code == 2


def test_the_help_says_that_a_file_is_run_and_shows_examples():
    text = " ".join(CliRunner().invoke(app, ["probe", "--help"]).output.split())
    assert "This runs the code in FILE.py" in text
    assert text.count("Example: lossscope probe") == 2


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.01", 0.01), (" 2.5 % ", 0.025), ("1e-3", 1e-3)])
def test_a_share_is_written_either_way(text, share):
    from lossscope.cli.probe import share_of

    assert share_of(text) == pytest.approx(share)


def test_a_share_out_of_range_is_refused():
    from lossscope.cli.probe import share_of

    for text in ("-1%", "1", "inf"):
        with pytest.raises(ConfigError, match="out of range"):
            share_of(text)


def test_keskars_sharpness_is_declared_in_the_catalogue_alone_and_known_everywhere(run):
    result = probe(run, "--measures", "keskar", "--max-products", "10")
    assert "Added 1 row; read it with `lossscope report sharpness" in " ".join(result.stdout.split())
    listed = CliRunner().invoke(app, ["list", "measures"]).output
    assert "keskar (legacy)" in listed
    report = CliRunner().invoke(app, ["report", "sharpness", str(run)], catch_exceptions=False).output
    assert "keskar (legacy)" in report[report.index("Other measures") :]
    assert "keskar" not in set(Run.open(run).probes["measure"][:-1])  # not recorded, and probed by name only


def test_the_list_of_measures_names_groups_and_marks_what_is_probed_by_default():
    listed = CliRunner().invoke(app, ["list", "measures"]).output.splitlines()
    assert {"spectrum (probed by default)", "direction (recorded only)", "alignment"} <= set(listed)
    rows = json.loads(CliRunner().invoke(app, ["list", "measures", "--json"]).output)["measures"]
    (keskar,) = (row for row in rows if row["name"] == "keskar")
    assert (keskar["group"], keskar["probed"], keskar["legacy"]) == ("keskar", "on request", True)


def test_the_list_of_measures_says_what_leaves_each_as_it_is_and_what_each_group_costs():
    listed = " ".join(CliRunner().invoke(app, ["list", "measures"]).output.split())
    assert "average_case cost: 65 losses average_sharpness [loss] mean rise" in listed
    assert "on every weight; unchanged by every diagonal rescaling low_pass" in listed
    assert "metric (probed by default) cost: up to --max-products Hessian products preconditioned" in listed
    rows = json.loads(CliRunner().invoke(app, ["list", "measures", "--json"]).output)["measures"]
    (one,) = (row for row in rows if row["name"] == "pac_bayes_sigma")
    assert (one["unchanged_by"], one["cost"]) == ("rotations only", "about 200 losses")
    assert one["bounds"] == "95 % interval over draws of noise"


def test_the_reports_named_hold_what_was_measured(run):
    said = probe(run, "--measures", "adaptive_trace,lambda_max", "--rel", "50%", "--max-products", "8").stdout
    assert f"`lossscope report sharpness {run}` and `lossscope report flatness {run}`" in said
