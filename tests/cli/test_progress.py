"""Progress bar: shown on terminals, silent in pipes."""

from __future__ import annotations

import io
import sys

import pytest

from lossscope.cli import progress
from lossscope.cli.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    with progress_bar("a run") as advance:
        for step in range(3):
            advance(step + 1, 3, 0.5)
    assert err.getvalue() == ""


def test_a_terminal_shows_the_steps_the_loss_and_the_time_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    with progress_bar("a run") as advance:
        advance(1, 3, 0.5)
        advance(2, 3, 0.25)
    shown = err.getvalue()
    assert "a run" in shown
    assert "2/3" in shown
    assert "0.25" in shown


def test_anything_shorter_than_two_seconds_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    with progress_bar("a run") as advance:
        advance(1, 1, 0.5)
    assert err.getvalue() == ""
