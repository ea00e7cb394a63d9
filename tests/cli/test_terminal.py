"""Width of text output."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from typer.testing import CliRunner

from lossscope.cli.main import app
from lossscope.cli.terminal import text_width

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
