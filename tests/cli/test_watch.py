"""`lossscope watch`: rows of running, finished and unreadable runs, in a pipe and in a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lossscope.cli.watch import watch
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports.listings.watch_table import watch_table

app = typer.Typer()
app.command()(watch)
Row = dict[str, object]


def training(path: Path, steps: int) -> RunStore:
    store = RunStore.create(path, {"arm": "one", "seeds": {"init": 0}})
    for step in range(1, steps + 1):
        store.append("steps", {"step": step, "loss": 1 / step})
    bound = {"low": 1.9, "high": 2.1, "converged": True}
    store.append("probes", {"step": steps, "measure": "lambda_max", "value": 2.0, **bound})
    store.flush()
    return store


def rows(runs: list[Run]) -> list[Row]:
    table = watch_table(runs)
    return [dict(zip([column.key for column in table.columns], row, strict=True)) for row in table.rows]


def test_a_row_has_the_last_values_and_bars(tmp_path: Path) -> None:
    store = training(tmp_path / "a", 50)
    (row,) = rows([Run.open(tmp_path / "a")])
    assert (row["status"], row["step"], row["loss"]) == ("running", 50, 0.02)
    assert str(row["losses"]).startswith("█")
    assert str(row["losses"]).endswith("▁")
    assert row["lambda_max"].value == 2.0  # type: ignore[attr-defined]
    store.close("finished", "done")


def test_a_single_spike_of_the_loss_is_not_smoothed_away(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "a", {"arm": "one"})
    for step in range(1, 2401):
        store.append("steps", {"step": step, "loss": 30.0 if step == 1850 else 1.0})
    store.close("finished", "done")
    (row,) = rows([Run.open(tmp_path / "a")])
    assert str(row["losses"]).index("█") == 1849 // 100


def test_without_a_terminal_the_table_is_printed_once(write_run: Callable[..., Run], tmp_path: Path) -> None:
    write_run("done")
    found = CliRunner().invoke(app, [str(tmp_path)], catch_exceptions=False)
    assert found.exit_code == 0
    assert "done" in found.stdout
    assert "\x1b" not in found.stdout


def read_until(descriptor: int, words: str, seconds: float = 60) -> str:
    seen, end = "", time.monotonic() + seconds
    while words not in seen and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.2)[0]:
            try:
                seen += os.read(descriptor, 65536).decode(errors="replace")
            except OSError:  # the other side has gone
                break
    return seen


@pytest.mark.parametrize("ending", ["finishes", "Ctrl-C"])
def test_in_a_terminal_it_follows_a_run_and_ends(ending: str, tmp_path: Path) -> None:
    store = training(tmp_path / "[red]a", 7)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lossscope.cli.main", "watch", str(tmp_path), "--every", "0.2"]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    first = read_until(ours, "running")
    assert "[red]a" in first
    store.append("steps", {"step": 8, "loss": 0.1})
    store.flush()
    assert " 8 " in read_until(ours, " 8 ")
    if ending == "finishes":
        store.close("finished", "done")
        assert "finished" in read_until(ours, "finished")
    else:
        process.send_signal(signal.SIGINT)
        store.close("finished", "done")
    rest = read_until(ours, "Traceback", 2)
    assert process.wait(60) == 0
    assert "Traceback" not in rest
    os.close(ours)
