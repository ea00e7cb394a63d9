"""Text output: its width, its encoding, and the characters that never reach a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lossscope import reports
from lossscope.cli.main import app, main
from lossscope.cli.progress import progress_bar
from lossscope.cli.terminal import SafeStream, text_width

LISTS = ("optimizers", "workloads", "measures")


@pytest.mark.parametrize(("columns", "width"), [("40", 80), ("80", 80), ("97", 97), ("120", 120), ("300", 120)])
def test_in_a_terminal_the_width_is_limited_to_80_to_120(columns, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert text_width() == 120
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert text_width() == width


def in_a_terminal(columns, *arguments):
    """Run the command on a pseudo-terminal of this many columns and return its output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    code = "from lossscope.cli.main import main; main()"
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal closes with the process
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    return shown.decode().replace("\r\n", "\n")


def test_a_report_and_a_list_fit_the_terminal(demo_runs):
    folder = str(demo_runs[0].path.parent)
    for arguments in (("report", "sharpness", folder), ("list", "measures")):
        lines = in_a_terminal(90, *arguments).splitlines()
        assert 85 <= max(map(len, lines)) <= 90


@pytest.mark.parametrize("columns", ["80", "200"])
def test_piped_output_does_not_depend_on_the_terminal(columns, demo_runs, monkeypatch):
    commands = [["report", "sharpness", str(demo_runs[0].path.parent)], *(["list", kind] for kind in LISTS)]
    monkeypatch.delenv("COLUMNS", raising=False)
    plain = [CliRunner().invoke(app, command).output for command in commands]
    monkeypatch.setenv("COLUMNS", columns)
    assert [CliRunner().invoke(app, command).output for command in commands] == plain
    assert 110 < max(len(line) for text in plain for line in text.splitlines()) <= 120


def test_a_report_in_a_file_does_not_depend_on_the_terminal(demo_runs, tmp_path, monkeypatch):
    monkeypatch.setattr("lossscope.cli.report.text_width", lambda: 80)
    run = str(demo_runs[0].path)
    shown = CliRunner().invoke(app, ["report", "sharpness", run]).output
    CliRunner().invoke(app, ["report", "sharpness", run, "--output", str(tmp_path / "page.txt")])
    saved = (tmp_path / "page.txt").read_text()
    assert max(map(len, shown.splitlines())) <= 80 < max(map(len, saved.splitlines())) <= 120


COMMANDS = (
    *(["report", kind, "RUNS", "--format", form] for kind in ("overview", "dynamics") for form in ("text", "json")),
    ["runs", "RUNS"],
    ["runs", "RUNS", "--json"],
    *(["list", kind] for kind in LISTS),
    ["report", "--help"],
    ["train", "--lr", "λ\x1b]0;title\x07"],
    ["runs", "missing-\x1b[2J-ü-漢\x9b"],
)


def written(arguments, encoding, monkeypatch):
    """Run the command on streams of an encoding; return what they got."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="") for _ in range(2)]
    monkeypatch.setattr(sys, "argv", ["lossscope", *arguments])
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with contextlib.suppress(SystemExit):
        main()
    for stream in streams:
        stream.flush()
    return [stream.buffer.getvalue().decode(encoding) for stream in streams]


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow), "cp1252"])
def test_every_command_writes_to_a_terminal_that_is_not_utf_8(encoding, write_run, tmp_path, monkeypatch):
    write_run("plain", "arm \x1b[31mü").path.rename(tmp_path / "λ-\x1b]0;title\x07-漢")
    for command in COMMANDS:
        out, err = written([str(tmp_path) if one == "RUNS" else one for one in command], encoding, monkeypatch)
        assert out or err
        assert "Traceback" not in out + err
        assert not {letter for letter in out + err if not letter.isprintable()} - {"\n", "\t"}
        if "json" in command or "--json" in command:
            assert "漢" in json.dumps(json.loads(out), ensure_ascii=False)


def test_symbols_have_names_in_ascii(demo_runs, monkeypatch):
    out, _ = written(["report", "sharpness", str(demo_runs[0].path)], "ascii", monkeypatch)
    assert "lambda_max +- bound" in out
    own = reports.render(reports.sharpness([demo_runs[0]]), "text", width=100).count("?")  # of questions
    assert out.count("?") == own


@pytest.mark.parametrize("control", ["\x1b", "\x07", "\x9b", "\u202e", "\r", "\x00", "\x7f"])
def test_control_characters_do_not_reach_a_stream(control):
    shown = io.StringIO()
    SafeStream(shown).write(f"a{control}[2Jb\n\t.")
    assert shown.getvalue() == "a\N{REPLACEMENT CHARACTER}[2Jb\n\t."


def test_a_progress_bar_shows_a_name_as_it_is(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", SafeStream(shown))
    monkeypatch.setattr("lossscope.cli.progress._DELAY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("[red]a[/b]\x07") as advance:
        advance(1, 3, "[/]")
        advance(2, 3, "[/]")
    assert "[red]a[/b]\N{REPLACEMENT CHARACTER}" in shown.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_device_is_one_line_and_a_closed_pipe_is_quiet(demo_runs):
    command = [sys.executable, "-c", "from lossscope.cli.main import main; main()", "runs", str(demo_runs[0].path)]
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert said.returncode == 1
    assert said.stderr.startswith("error: cannot write to standard output: No space left on device")
    assert said.stderr.count("\n") == 1
    reader, writer = os.pipe()
    os.close(reader)
    said = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (said.returncode, said.stderr) == (1, "")


def test_an_error_of_the_system_is_one_line(demo_runs, monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("lossscope.landscape.run.run_folders", refuse)
    monkeypatch.setattr(sys, "argv", ["lossscope", "report", "overview", "runs"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: runs: Permission denied; check its permissions\n"


def test_a_name_that_is_too_long_is_no_matter_of_permissions(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lossscope", "report", "overview", "x" * 300])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.endswith("File name too long; choose a shorter path\n")
