"""`lossscope report`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from lossscope.cli.report import report_app
from lossscope.landscape.errors import LandscapeError, RunError, SchemaError
from lossscope.landscape.storage.run_store import RunStore

app = typer.Typer()
app.add_typer(report_app, name="report")
COMMANDS = ("overview", "sharpness", "entropy", "flatness", "dynamics")


def invoke(*arguments, catch=False):
    return CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=catch)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_report_has_help_with_an_example(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Example: lossscope report {command} runs/demo" in result.stdout
    assert "text|json|markdown|html" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_runs_is_reported_on_stdout_and_nothing_on_stderr(command, demo_runs):
    result = invoke(command, demo_runs[0].path.parent)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "4 runs of 2 arms: ars2-base, ars2-sync" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_object(command, demo_runs):
    result = invoke(command, demo_runs[0].path, "--format", "json")
    assert json.loads(result.stdout)["kind"] == command


@pytest.mark.parametrize(("format", "beginning"), [("text", "Overview\n"), ("json", "{"), ("html", "<!doctype html>")])
def test_the_overview_has_its_summary_of_each_arm_in_every_format(demo_runs, format, beginning):
    shown = invoke("overview", demo_runs[0].path.parent, "--format", format).stdout
    assert shown.startswith(beginning)
    assert all(words in shown for words in ("ars2-base", "ars2-sync", "shear angle", "50.5"))
    if format == "json":
        assert json.loads(shown)["tables"]["summary"]["rows"][0]["arm_2"] == 2


def test_a_run_named_twice_counts_once(demo_runs):
    result = invoke("sharpness", demo_runs[0].path, demo_runs[0].path, demo_runs[0].path.parent)
    assert "4 runs of 2 arms" in result.stdout


def test_a_page_goes_to_a_file_and_stdout_stays_empty(demo_runs, tmp_path):
    page = tmp_path / "page.html"
    result = invoke("sharpness", demo_runs[0].path, "--format", "html", "--output", page)
    assert (result.exit_code, result.stdout) == (0, "")
    assert page.read_text().startswith("<!doctype html>")


def test_an_existing_file_is_kept_without_force(demo_runs, tmp_path):
    page = tmp_path / "page.txt"
    page.write_text("mine")
    with pytest.raises(LandscapeError, match=r"page\.txt exists; add --force"):
        invoke("sharpness", demo_runs[0].path, "--output", page)
    assert page.read_text() == "mine"
    invoke("sharpness", demo_runs[0].path, "--output", page, "--force")
    assert page.read_text().startswith("Sharpness")


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to(os.devnull), lambda path: path.symlink_to(path)]
)
def test_only_a_regular_file_is_replaced(demo_runs, tmp_path, make, force):
    page = tmp_path / "page.txt"
    make(page)
    before = os.lstat(page)
    with pytest.raises(
        LandscapeError, match=r"page\.txt is no regular file, so it is not replaced; choose another --out"
    ):
        invoke("sharpness", demo_runs[0].path, "--output", page, *force)
    assert os.path.samestat(os.lstat(page), before)
    assert not list(tmp_path.glob(".page*"))


def test_a_path_without_a_run_is_a_known_error(tmp_path):
    with pytest.raises(RunError, match="nothing"):
        invoke("sharpness", tmp_path / "nothing")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_run_among_others_stops_a_report(command, demo_runs):
    (demo_runs[1].path / "run.json").write_text('{"schema_version": 99}')
    with pytest.raises(SchemaError, match="schema version 99"):
        invoke(command, demo_runs[0].path.parent)


def test_an_unknown_format_is_a_usage_error(demo_runs):
    assert invoke("sharpness", demo_runs[0].path, "--format", "pdf", catch=True).exit_code == 2


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after running the code."""
    script = f"import sys\n{code}\nsys.stderr.write('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


RUN = "from lossscope.cli.report import report_app\nreport_app({arguments!r}, standalone_mode=False)"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command):
    modules = loaded_by(RUN.format(arguments=[command, "--help"]))
    assert not modules & {"torch", "numpy", "pandas", "pyarrow", "matplotlib", "jinja2", "scipy"}


def test_help_of_all_reports_lists_each():
    listed = invoke("--help").stdout
    assert all(command in listed for command in COMMANDS)


def test_a_text_report_of_dynamics_with_intervals_loads_no_torch_and_no_statistics(write_run):
    run = write_run("a")
    store = RunStore.extend(run.path, {})
    for step in range(0, 40):
        store.append("pairs", {"step": step, "object": "gradient", "lag": step % 2, "cosine": 0.5, "size": 9})
    store.leave()
    modules = loaded_by(RUN.format(arguments=["dynamics", str(run.path)]))
    assert {"pandas", "lossscope.probes.dynamics.direction_memory", "scipy.special"} <= modules
    assert not modules & {"torch", "matplotlib", "jinja2", "scipy.stats"}


def test_no_text_report_loads_torch_or_matplotlib(demo_runs):
    folder = str(demo_runs[0].path.parent)
    modules = loaded_by("\n".join(RUN.format(arguments=[command, folder]) for command in COMMANDS))
    assert {"pandas", *(f"lossscope.reports.{command}.report" for command in COMMANDS)} <= modules
    assert not modules & {"torch", "matplotlib", "jinja2", "scipy"}


def test_a_page_loads_no_torch_and_no_pyplot(demo_runs, tmp_path):
    arguments = ["sharpness", str(demo_runs[0].path), "--format", "html", "--output", str(tmp_path / "page.html")]
    modules = loaded_by(RUN.format(arguments=arguments))
    assert "matplotlib.figure" in modules
    assert not modules & {"torch", "matplotlib.pyplot"}
