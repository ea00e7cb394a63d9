"""Ends of trainings: without `close()`, by an exception, and by signals at random moments. Nothing flushed is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lossscope.landscape.run import Run


class Trainings:
    """Trainings in processes of their own, one after another."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("ending_loop.py")
        self._server = subprocess.Popen(
            [sys.executable, "-u", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, mode: str, path: Path) -> int:
        """Start a training and return its process id."""
        self._server.stdin.write(f"{mode} {path}\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def exit_status(self) -> int:
        """Wait for the training to end, and return its exit status: minus the number of a signal."""
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    server = Trainings()
    yield server
    server.close()


def ended(trainings: Trainings, mode: str, path: Path) -> tuple[Run, int]:
    trainings.start(mode, path)
    status = trainings.exit_status()
    return Run.open(path), status


@pytest.mark.parametrize(
    ("mode", "status", "how", "code"),
    [
        ("caught", "finished", "the program ended without recorder.close()", 0),
        ("planned", "finished", "stopped at 5 of 9", 0),
        ("raise", "failed", "ZeroDivisionError: a reason", 1),
        pytest.param("plain", "finished", "the program ended without recorder.close()", 0, marks=pytest.mark.slow),
        pytest.param("exit", "finished", "the program ended without recorder.close()", 0, marks=pytest.mark.slow),
        pytest.param("complete", "finished", "the program ended without recorder.close()", 0, marks=pytest.mark.slow),
    ],
)
def test_a_recorder_that_is_not_closed_ends_with_the_interpreter(
    mode: str, status: str, how: str, code: int, trainings: Trainings, tmp_path: Path
) -> None:
    run, found = ended(trainings, mode, tmp_path / mode)
    assert (run.status, run.manifest["how_it_ended"], found) == (status, how, code)
    assert run.steps["step"].tolist() == [1, 2, 3, 4, 5]
    assert (run.path / "steps.parquet").exists()


def seen(path: Path, least: int) -> int:
    """Return the number of steps that can be read, once there are some."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (path / "run.json").exists() and len(steps := Run.open(path).steps) >= least:
            return len(steps)
        time.sleep(0.005)
    raise AssertionError(f"no rows in {path}")


def killed(trainings: Trainings, mode: str, path: Path, signals: list[int], pause: random.Random) -> tuple[Run, int]:
    """Return the run and the exit status of a training that got signals, after checking that it kept its rows."""
    process = trainings.start(mode, path)
    seen(path, 3)
    time.sleep(pause.uniform(0, 0.1))
    known = seen(path, 3)
    for number in signals:
        os.kill(process, number)
        time.sleep(pause.uniform(0, 0.03))
        if number == signal.SIGKILL:
            break
    status = trainings.exit_status()
    run = Run.open(path)
    assert run.steps["step"].tolist() == list(range(1, len(run.steps) + 1))
    assert len(run.steps) >= known
    return run, status


KINDS = {"kill": [signal.SIGKILL], "term": [signal.SIGTERM], "interrupts": [signal.SIGINT]}


@pytest.mark.parametrize("moments", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_flushed_is_lost_by_a_signal_at_a_random_moment(
    kind: str, moments: int, trainings: Trainings, tmp_path: Path
) -> None:
    pause = random.Random(moments)
    for moment in range(moments):
        mode = "block" if moment % 2 else "endless"
        run, code = killed(trainings, mode, tmp_path / str(moment), KINDS[kind], pause)
        if kind == "kill":
            assert (run.status, code) == ("crashed", -signal.SIGKILL)
        elif kind == "term":
            assert (run.status, code) == ("stopped", -signal.SIGTERM)
            taken = int(run.manifest["how_it_ended"].removeprefix("SIGTERM: stopped at "))
            assert taken - len(run.steps) in (0, 1)  # 1: between an optimizer step and its row
        else:
            assert run.status == "failed"
            assert run.manifest["how_it_ended"].startswith("KeyboardInterrupt")


@pytest.mark.parametrize("moments", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_two_interrupts_lose_nothing(moments: int, trainings: Trainings, tmp_path: Path) -> None:
    pause = random.Random(moments)
    for moment in range(moments):
        mode = "block" if moment % 2 else "endless"
        run, _ = killed(trainings, mode, tmp_path / str(moment), [signal.SIGINT] * 2, pause)
        assert run.status in ("failed", "crashed")  # the second one may arrive while the first ends the run


def test_a_handler_of_the_user_is_called_and_stays(trainings: Trainings, tmp_path: Path) -> None:
    run, code = killed(trainings, "own_handler", tmp_path / "own", [signal.SIGTERM], random.Random(0))
    assert code == 0  # the handler ended the loop
    assert run.status == "stopped"
    assert run.manifest["how_it_ended"].startswith("SIGTERM arrived at step ")


@pytest.mark.slow
def test_a_handler_that_the_user_sets_later_is_left_in_place(trainings: Trainings, tmp_path: Path) -> None:
    _, code = ended(trainings, "late_handler", tmp_path / "late")
    assert code == 0
