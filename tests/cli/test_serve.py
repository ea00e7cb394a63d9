"""`lossscope serve` as a process: its line, its end, and what it says where it cannot start."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lossscope.cli.main import app

COMMAND = [sys.executable, "-m", "lossscope.cli.main", "serve"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")
def test_it_serves_until_an_interrupt_and_ends_without_a_traceback(demo_folder: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, str(demo_folder), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"4 runs of .* at http://127\.0\.0\.1:(\d+)/ until Ctrl-C", line)
        assert found, line
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_port_in_use_is_one_line(demo_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*COMMAND, str(demo_folder), "--port", str(port)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: port {port} of 127.0.0.1 is in use: choose another --port, or 0 for one that is free\n"
    )


def test_a_folder_without_runs_a_file_and_a_wrong_port_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for place, words in ((tmp_path, "no run in"), (tmp_path / "file", "file"), (tmp_path / "none", "none")):
        found = CliRunner().invoke(app, ["serve", str(place)])
        assert found.exit_code != 0
        assert words in str(found.exception)
    assert CliRunner().invoke(app, ["serve", str(tmp_path), "--port", "70000"]).exit_code == 2
