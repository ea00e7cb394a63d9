"""Parallel trainings make the same runs as separate ones."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from lossscope.landscape.errors import ConfigError, RunError, TrainingError
from lossscope.landscape.recording.checkpoints import checkpoints, load_checkpoint
from lossscope.landscape.run import Run
from lossscope.landscape.training import parallel
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.parallel import train_all
from lossscope.landscape.training.setup import job_of
from lossscope.landscape.training.training import resolved, train

SCRIPT = """
import multiprocessing
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.parallel import train_all

def tell(taken, steps, said):
    if taken and not told:
        told.append(print(*[child.pid for child in multiprocessing.active_children()], flush=True))

if __name__ == "__main__":
    told = []
    settings = dict(workload="digits-mlp", optimizer="sgd", out={out!r}, steps=100000, evaluations=0, preset="economy")
    train_all([TrainConfig(name=f"s{{seed}}", seed=seed, **settings) for seed in range(2)], jobs=2, progress=tell)
"""


@pytest.fixture
def warm_workers(warm: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers that have loaded torch. They come from a process without threads, so that a fork is harmless.

    Workers that load it themselves are in the slow tests here and in the demo's.
    """
    monkeypatch.setattr(parallel, "get_context", lambda method: warm)


def asked(out: Path, seed: int, **settings: Any) -> TrainConfig:
    few: dict[str, Any] = {"steps": 4, "evaluations": 0, "preset": "economy", "threads": 1}
    return TrainConfig(
        workload="digits-mlp", optimizer="ars2-sync", name=f"s{seed}", out=str(out), seed=seed, **few | settings
    )


def weights(config: TrainConfig, run: Run) -> list[list[float]]:
    job = job_of(resolved(config))
    load_checkpoint(list(checkpoints(run.path).values())[-1], job.model, job.optimizer)
    return [p.detach().flatten().tolist() for p in job.model.parameters()]


@pytest.mark.slow
def test_runs_are_bit_for_bit_those_made_separately_and_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples: list[tuple[int, int, str]] = []
    together = [asked(tmp_path / "together", seed, steps=8 - 2 * seed) for seed in range(3)]  # the last one ends first
    runs = train_all(together, jobs=2, progress=lambda *look: samples.append(look))
    said = capsys.readouterr().err
    assert [run.name for run in runs] == ["s0", "s1", "s2"]
    assert sorted(line.split(":")[0] for line in said.splitlines()) == [str(run.path) for run in runs]
    assert samples[-1] == (18, 18, "3 of 3 runs")
    assert [taken for taken, _, _ in samples] == sorted(taken for taken, _, _ in samples)
    for config, run in zip(together, runs, strict=True):
        one = train(config.with_settings({"out": str(tmp_path / "alone")}))
        assert run.steps["loss"].tolist() == one.steps["loss"].tolist()
        assert weights(config, run) == weights(config, one)


def test_after_one_has_failed_no_other_starts_and_recorded_rows_are_kept(warm_workers: None, tmp_path: Path) -> None:
    far: dict[str, Any] = {"optimizer": "sgd", "lr": 1e30}
    configs = [asked(tmp_path, 0), asked(tmp_path, 1).with_settings(far), asked(tmp_path, 2)]
    with pytest.raises(TrainingError, match=r"the loss became .* at step \d"):
        train_all(configs, jobs=1)
    assert [Run.open(tmp_path / name).status for name in ("s0", "s1")] == ["finished", "failed"]
    assert not (tmp_path / "s2").exists()


def test_a_killed_process_is_one_clear_line(warm_workers: None, tmp_path: Path) -> None:
    def end(taken: int, steps: int, said: str) -> None:
        if taken:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(TrainingError, match="could not start or was killed"):
        train_all([asked(tmp_path, 0, steps=100_000)], jobs=1, progress=end)
    assert Run.open(tmp_path / "s0").status == "crashed"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_stops_trainings_and_keeps_their_rows(
    warm_workers: None, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(taken: int, steps: int, said: str) -> None:
        if taken:
            signal.raise_signal(getattr(signal, name))

    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # recorders of other tests may have set their own
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    try:
        with pytest.raises(KeyboardInterrupt if name == "SIGINT" else SystemExit):
            train_all([asked(tmp_path, seed, steps=100_000) for seed in range(2)], jobs=1, progress=interrupt)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert Run.open(tmp_path / "s0").manifest["how_it_ended"] == "KeyboardInterrupt"
    assert "of which recording took" in capsys.readouterr().err
    assert not (tmp_path / "s1").exists()


@pytest.mark.parametrize("at_the_end_of_a_step", [False, True])
def test_a_training_is_interrupted_within_a_long_step_and_left_alone_once_it_has_noticed(
    at_the_end_of_a_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(parallel, "_STEP_SECONDS", 0.05)
    noticed, done = threading.Event(), threading.Event()
    if at_the_end_of_a_step:
        noticed.set()
    told = multiprocessing.get_context("spawn").RawArray("q", [5, 1])  # steps of a training, and the stop
    with contextlib.suppress(KeyboardInterrupt), parallel._stopped_when_told(told, noticed):
        for _ in range(2000 if not at_the_end_of_a_step else 30):
            time.sleep(0.005)
        done.set()
    assert done.is_set() == at_the_end_of_a_step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_ending_the_parent_alone_leaves_no_process(tmp_path: Path, name: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(out=str(tmp_path / "runs")))
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        deadline = time.monotonic() + 60
        while not (tmp_path / "runs" / "s0" / "run.json").exists():  # on a busy machine the training starts late
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(getattr(signal, name))
        said = parent.communicate(timeout=120)[1]
    assert children
    assert said.count("Traceback") == (name == "SIGINT")  # the parent's own
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "resource_tracker" not in said or name == "SIGKILL"
    assert Run.open(tmp_path / "runs" / "s0").status == ("crashed" if name == "SIGKILL" else "failed")


def test_errors_in_configs_are_raised_before_any_training_starts(tmp_path: Path) -> None:
    one = asked(tmp_path, 0)
    with pytest.raises(ConfigError, match="jobs must be >= 1, got 0"):
        train_all([one], jobs=0)
    with pytest.raises(ConfigError, match=r"two configs write the same run .*s0"):
        train_all([one, one.with_settings({"seed": 1})], jobs=2)
    train(asked(tmp_path / "there", 1))
    with pytest.raises(RunError, match="already holds a run"):
        train_all([one, asked(tmp_path / "there", 1)], jobs=2)
    with pytest.raises(ConfigError, match="unknown optimizer 'ars3'"):
        train_all([one, asked(tmp_path, 1).with_settings({"optimizer": "ars3"})], jobs=2)
    assert train_all([], jobs=2) == []
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
