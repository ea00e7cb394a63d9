"""`lossscope runs`."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from lossscope.cli.runs import runs
from lossscope.landscape.errors import RunError

app = typer.Typer()
app.command()(runs)


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def rows(*arguments):
    return {row["name"]: row for row in json.loads(invoke(*arguments, "--json").stdout)["rows"]}


def test_a_folder_is_listed_with_how_each_run_stands(write_run, tmp_path):
    write_run("done", "adamw", 1)
    write_run("dead", steps=7, status=None)
    found = rows(tmp_path)
    assert list(found) == ["dead", "done"]
    assert found["done"]["arm"] == "adamw"
    assert (found["done"]["status"], found["done"]["steps"]) == ("finished", 40)
    assert found["done"]["loss"] == pytest.approx(0.06)
    assert found["done"]["test_accuracy"] == pytest.approx(0.91)
    assert found["dead"]["steps"] == 7
    assert found["dead"]["test_accuracy"] is None
    assert "after step 7" in found["dead"]["ends"]


def test_the_table_is_text_with_a_dash_for_a_gap(write_run, tmp_path):
    write_run("empty", steps=0)
    result = invoke(tmp_path)
    assert result.stderr == ""
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("empty")]
    assert line.split()[:6] == ["empty", "ars2-base", "finished", "–", "–", "–"]


def test_runs_one_folder_deeper_are_named_by_their_path(write_run, tmp_path):
    write_run("demo/a")
    write_run("demo/b")
    assert list(rows(tmp_path)) == ["demo/a", "demo/b"]
    write_run("alone")
    assert list(rows(tmp_path)) == ["alone", "demo/a", "demo/b"]


def test_a_single_run_is_a_list_of_one(write_run):
    assert list(rows(write_run("one").path)) == ["one"]


def test_a_run_with_garbled_steps_keeps_its_row_and_says_so(write_run, tmp_path):
    run = write_run("bad")
    write_run("good")
    (run.path / "steps.parquet").write_bytes(b"PAR1 nonsense")
    found = rows(tmp_path)
    assert found["bad"]["steps"] is None
    assert "steps.parquet" in found["bad"]["ends"]
    assert found["good"]["steps"] == 40


BROKEN = {
    '{"schema_version": 99}': "schema version 99",
    "{": "not valid JSON",
    "[]": "holds no JSON object",
    '{"arm": "a"}': "has no schema_version",
}


@pytest.mark.parametrize(("manifest", "reason"), BROKEN.items())
@pytest.mark.parametrize("deeper", ["", "demo/"])
def test_a_run_that_cannot_be_opened_is_a_row_among_the_others(write_run, tmp_path, manifest, reason, deeper):
    bad = write_run(f"{deeper}bad")
    write_run(f"{deeper}good")
    (bad.path / "run.json").write_text(manifest)
    found = rows(tmp_path)
    assert list(found) == [f"{deeper}bad", f"{deeper}good"]
    gone = found[f"{deeper}bad"]
    assert gone["status"] == "unreadable"
    assert reason in gone["ends"]
    assert len(gone["ends"].splitlines()) == 1
    assert {gone[key] for key in ("arm", "steps", "loss", "test_accuracy")} == {None}
    assert found[f"{deeper}good"]["steps"] == 40


def test_a_run_that_cannot_be_opened_stands_in_the_text_and_the_exit_code_is_zero(write_run, tmp_path):
    (write_run("bad").path / "run.json").write_text("{")
    write_run("good")
    result = invoke(tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.startswith(("bad", "good"))}
    assert lines["bad"][1:6] == ["–", "unreadable", "–", "–", "–"]
    assert lines["good"][2] == "finished"


def test_a_path_to_a_bad_run_is_a_known_error(write_run):
    run = write_run("bad")
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        invoke(run.path)


def test_a_hidden_folder_is_not_listed(write_run, tmp_path):
    write_run(".trash/old")
    write_run("demo/new")
    write_run("demo/old").path.rename(tmp_path / "demo" / ".old")
    assert list(rows(tmp_path)) == ["demo/new"]


def test_a_folder_without_runs_is_a_known_error(tmp_path):
    with pytest.raises(RunError, match="no run"):
        invoke(tmp_path)
