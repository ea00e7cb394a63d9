"""Runs and folders that are not as a report wants them: a clear line, and the part of the report that is possible."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lossscope.cli.main import app, main
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore

KINDS = ("overview", "sharpness", "entropy", "flatness", "dynamics", "all")
OLD = Path(__file__).parents[1] / "data"


def report(kind: str, *paths: Path, format: str = "text") -> str:
    """Return what a report prints; it must end well."""
    found = CliRunner().invoke(app, ["report", kind, *map(str, paths), "--format", format], catch_exceptions=False)
    assert found.exit_code == 0
    if format == "json":
        json.loads(found.output, parse_constant=pytest.fail)
    return found.output


def error_line(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command prints to stderr before it ends with 1."""
    monkeypatch.setattr(sys, "argv", ["lossscope", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err


def empty(path: Path) -> Path:
    RunStore.create(path, {"arm": "empty"}).close("finished", "nothing to do")
    return path


def one_step(path: Path) -> Path:
    store = RunStore.create(path, {"arm": "one"})
    store.append("steps", {"step": 1, "loss": 2.5})
    store.close("finished", "the loop ended")
    return path


def without_values(path: Path) -> Path:
    """Write rows in every table whose numbers are all missing."""
    store = RunStore.create(path, {"arm": "void", "data_hash": "5f0c", "loss_unit": "nats"})
    for step in range(1, 31):
        store.append("steps", {"step": step, "loss": math.nan})
        store.append("tensors", {"step": step, "tensor": "w", "track": "matrix"})
        store.append("spectra", {"step": step, "tensor": "w", "object": "orthogonal", "values": []})
        store.append("probes", {"step": step, "measure": "lambda_max"})
        store.append("pairs", {"step": step, "object": "shear", "lag": 0})
        store.append("densities", {"step": step, "probe": 0, "nodes": [], "weights": [], "settled": []})
        store.append("curves", {"step": step, "measure": "noise_rise", "x": [], "y": []})
    store.close("finished", "the loop ended")
    return path


PARTIAL: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "an empty run": (empty, ("no step was recorded",)),
    "one step": (one_step, ("finished after 1 step", "2.5")),
    "all values missing": (without_values, ("void",)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", PARTIAL)
def test_the_part_that_is_possible_is_reported(what: str, kind: str, tmp_path: Path) -> None:
    write, words = PARTIAL[what]
    path = write(tmp_path / "poor")
    for format in ("text", "json", "markdown"):
        found = report(kind, path, format=format)
        assert "nan" not in found.lower().replace("nano", "").split()
    text = " ".join(report(kind, path).split())
    for one in words:
        assert one.lower() in text.lower(), text[:2000]


@pytest.mark.parametrize("what", PARTIAL)
def test_a_page_of_it_is_made(what: str, tmp_path: Path) -> None:
    write, _ = PARTIAL[what]
    assert report("all", write(tmp_path / "poor"), format="html").startswith("<!doctype html>")


@pytest.mark.parametrize("kind", KINDS)
def test_poor_runs_beside_a_good_one_leave_its_numbers(
    kind: str, write_run: Callable[..., Run], tmp_path: Path
) -> None:
    good = write_run("good").path
    paths = [good, *(write(tmp_path / f"poor-{place}") for place, (write, _) in enumerate(PARTIAL.values()))]
    alone, together = (json.loads(report(kind, *some, format="json")) for some in ([good], paths))
    assert alone["tables"].keys() <= together["tables"].keys()
    assert "4 runs" in together["subtitle"]


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_several_schemas_are_one_report(kind: str, write_run: Callable[..., Run], tmp_path: Path) -> None:
    old = [path for path in sorted(OLD.iterdir()) if (path / "run.json").is_file()]
    assert old
    versions = {json.loads((path / "run.json").read_text())["schema_version"] for path in old}
    new = write_run("new").path
    assert json.loads((new / "run.json").read_text())["schema_version"] not in versions
    copies = [Path(shutil.copytree(path, tmp_path / f"old-{place}")) for place, path in enumerate(old)]
    found = json.loads(report(kind, *copies, new, format="json"))
    assert f"{len(old) + 1} runs" in found["subtitle"]


def test_a_newer_schema_says_what_to_do(
    write_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run("new").path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 999}))
    line = error_line(["report", "all", str(path.parent)], monkeypatch, capsys)
    assert "999" in line


@pytest.mark.parametrize("command", [*(["report", kind] for kind in KINDS), ["watch"], ["runs"], ["serve"], ["export"]])
@pytest.mark.parametrize("what", ["empty folder", "file", "nothing", "other files", "broken manifest"])
def test_a_path_without_a_run_is_one_line_that_names_it(
    command: list[str],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    if what == "file":
        place.write_text("text")
    elif what != "nothing":
        place.mkdir()
    if what == "other files":
        (place / "data.csv").write_text("1,2")
    if what == "broken manifest":
        (place / "run.json").write_text("{")
    more = ["--output", str(tmp_path / "out")] if command == ["export"] else []
    line = error_line([*command, str(place), *more], monkeypatch, capsys)
    assert str(place) in line


def test_no_terminal_is_no_reason_to_fail(write_run: Callable[..., Run]) -> None:
    """Standard input and error are closed, output is a pipe, and the environment names no terminal."""
    path = write_run("good").path
    environment = {key: value for key, value in os.environ.items() if key not in ("TERM", "COLUMNS", "LINES", "HOME")}
    for command in (["report", "overview"], ["watch"], ["runs"]):
        done = subprocess.run(
            [sys.executable, "-m", "lossscope.cli.main", *command, str(path)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\x1b" not in done.stdout
        assert b"good" in done.stdout or b"ars2-base" in done.stdout
