"""`lossscope runs`."""

from __future__ import annotations

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from lossscope.cli.report import report_app
from lossscope.cli.runs import runs
from lossscope.landscape.errors import RunError

app = typer.Typer()
app.command()(runs)


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def rows(*arguments):
    return {row["name"]: row for row in json.loads(invoke(*arguments, "--json").stdout)["rows"]}


def test_a_folder_is_listed_with_the_status_of_each_run(write_run, tmp_path):
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


def test_the_table_is_text_with_a_dash_for_a_missing_value(write_run, tmp_path):
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


def test_a_run_with_corrupted_steps_keeps_its_row_and_says_so(write_run, tmp_path):
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
    "[]": "must be a JSON object, got a list",
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


TREE = {"alone": "sgd", "demo/a": "adamw", "demo/b": "lion", "group/c": "muon"}  # run -> arm
NOT_SEARCHED = ("x/y/three-levels-deep", ".hidden/d", "demo/.replaced", "alone/inside-a-run")


@pytest.fixture
def tree(write_run, tmp_path):
    """Return a folder with runs at one and two levels, and others that are hidden or too deep."""
    for name, arm in TREE.items():
        write_run(f"tree/{name}", arm, steps=1)
    for name in NOT_SEARCHED:
        source = write_run(f"made/{name.replace('/', '-').replace('.', '')}", "wrong-arm", steps=1)
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        source.path.rename(tmp_path / "tree" / name)
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        (".", ["alone", "demo/a", "demo/b", "group/c"]),
        ("demo", ["demo/a", "demo/b"]),
        ("demo/a", ["demo/a"]),
        ("x", ["x/y/three-levels-deep"]),
    ],
)
def test_runs_and_report_find_the_same_runs_down_to_two_levels(tree, below, expected):
    arms = [row["arm"] for row in rows(tree / below).values()]
    assert arms == [TREE.get(name, "wrong-arm") for name in expected]
    result = CliRunner().invoke(report_app, ["overview", str(tree / below)], catch_exceptions=False)
    found = re.search(r"^(\d+) runs? of \d+ arms?: (.*?)\s*(?:\(an arm: |$)", result.stdout, re.MULTILINE)
    assert found
    assert int(found[1]) == len(expected)
    assert set(found[2].split(", ")) == set(arms)


def test_runs_and_report_explain_in_the_same_words_where_they_searched(tmp_path):
    (tmp_path / "demo" / "empty").mkdir(parents=True)
    words = r"^no run in .*: searched it and two levels of folders below for run\.json, hidden folders excluded; "
    with pytest.raises(RunError, match=words):
        invoke(tmp_path)
    with pytest.raises(RunError, match=words):
        CliRunner().invoke(report_app, ["overview", str(tmp_path)], catch_exceptions=False)


def test_the_first_line_names_the_runs_that_diverged_and_their_rows_say_it_too(write_run, tmp_path):
    def lost(table, row):
        return {**row, "loss": float("inf")} if table == "steps" and row["step"] >= 3 else row

    write_run("good")
    assert invoke(tmp_path).stdout.startswith("Runs in ")
    write_run("demo/gone", rows=lost)
    words = "demo/gone: the loss stopped being finite at step 3 (before: 1.000)"
    assert invoke(tmp_path).stdout.startswith(f"Diverged: {words}\n")
    assert json.loads(invoke(tmp_path, "--json").stdout)["alert"] == f"Diverged: {words}"
    found = rows(tmp_path)
    assert found["demo/gone"]["ends"].startswith("Diverged: the loss stopped being finite at step 3")
    assert "Diverged" not in found["good"]["ends"]
