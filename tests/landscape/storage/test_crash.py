"""Recording processes are killed at random times; every flushed row must be readable."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lossscope.landscape.errors import RunError
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore

_RECORDING = """
import sys
from lossscope.landscape.storage.run_store import RunStore
store = RunStore.create(sys.argv[1], {"arm": "sgd"})
step = 0
while True:
    step += 1
    for tensor in ("a", "b"):
        store.append("tensors", {"step": step, "tensor": tensor, "track": "matrix"})
        store.append("spectra", {"step": step, "tensor": tensor, "object": "update", "values": [1.0 / step] * 2000})
    store.append("steps", {"step": step, "loss": 1.0 / step})
    if step % int(sys.argv[2]) == 0:
        store.flush()
        sys.stdout.write(f"{step}\\n")
        sys.stdout.flush()
"""


def _recording(path: Path, every: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _RECORDING, str(path), str(every)], stdout=subprocess.PIPE, text=True, bufsize=1
    )


def _killed(path: Path, every: int, seconds: float) -> int:
    """Record, kill the process that many seconds after the first flush, and return the last flushed step."""
    with _recording(path, every) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        lines = (first + process.stdout.read()).split("\n")
    return int(lines[-2])  # the last complete line; the rest was truncated with the pipe


def _sizes(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in (path / "journal").iterdir()}


FAST = (3, 11, 15)  # kills between two flushes, just after the first one, and late
NUMBERS = [number if number in FAST else pytest.param(number, marks=pytest.mark.slow) for number in range(20)]


@pytest.mark.parametrize("number", NUMBERS)
def test_whatever_was_flushed_before_the_kill_is_there(tmp_path, number):
    chance = random.Random(number)
    flushed = _killed(tmp_path / "a", chance.randint(1, 3), chance.uniform(0.0, 0.3))
    run = Run.open(tmp_path / "a")
    steps = list(run.steps["step"])
    assert run.status == "crashed"
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= flushed
    assert list(run.steps["loss"]) == [1.0 / step for step in steps]
    for table in (run.tensors, run.spectra):
        assert list(table["step"][: 2 * len(steps)]) == [step for step in steps for _ in "ab"]
    assert f"after step {len(steps)}" in run.ends

    before = _sizes(run.path)
    store = RunStore.resume(run.path, flushed)
    store.append("steps", {"step": flushed + 1, "loss": -1.0})
    store.flush()
    assert _sizes(run.path).items() >= before.items()
    resumed = Run.open(run.path)
    assert list(resumed.steps["step"]) == list(range(1, flushed + 2))
    assert len(resumed.spectra) == 2 * flushed
    store.close("finished", "done")
    finished = Run.open(run.path)
    assert list(finished.steps["loss"]) == list(resumed.steps["loss"])
    assert len(finished.spectra) == 2 * flushed


def test_a_live_run_reads_while_another_process_writes_it_and_cannot_be_recorded_twice(tmp_path):
    path = tmp_path / "a"
    process = _recording(path, 1)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        lengths = [0]
        for _ in range(6):
            run = Run.open(path)
            steps = len(run.steps)
            assert run.status == "running"
            assert list(run.steps["step"]) == list(range(1, steps + 1))
            assert len(run.spectra) >= 2 * steps
            assert steps >= lengths[-1]
            lengths.append(steps)
        assert lengths[-1] > lengths[1]
        with pytest.raises(RunError, match="is being recorded by another process"):
            RunStore.resume(path, 1)
    finally:
        process.kill()
        process.communicate()
    assert Run.open(path).status == "crashed"
