"""Several trainings at a time make the runs that each would have made alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lossscope.landscape.checkpoint import checkpoints, load_checkpoint
from lossscope.landscape.config import TrainConfig
from lossscope.landscape.errors import ConfigError, TrainingError
from lossscope.landscape.job import job_of
from lossscope.landscape.run import Run
from lossscope.landscape.training import resolved, train
from lossscope.landscape.trainings import train_all


def asked(out: Path, seed: int, **settings: Any) -> TrainConfig:
    few: dict[str, Any] = {"steps": 4, "visits": 0, "preset": "economy", "threads": 1}
    return TrainConfig(
        workload="digits-mlp", optimizer="ars2-sync", name=f"s{seed}", out=str(out), seed=seed, **few | settings
    )


def weights(config: TrainConfig, run: Run) -> list[list[float]]:
    job = job_of(resolved(config))
    load_checkpoint(list(checkpoints(run.path).values())[-1], job.model, job.optimizer)
    return [p.detach().flatten().tolist() for p in job.model.parameters()]


def test_runs_are_bit_for_bit_those_made_alone_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks: list[tuple[int, int, str]] = []
    together = [asked(tmp_path / "together", seed, steps=8 - 2 * seed) for seed in range(3)]  # the last one ends first
    runs = train_all(together, jobs=2, progress=lambda *look: looks.append(look))
    said = capsys.readouterr().err
    assert [run.name for run in runs] == ["s0", "s1", "s2"]
    assert sorted(line.split(":")[0] for line in said.splitlines()) == [str(run.path) for run in runs]
    assert looks[-1] == (18, 18, "3 of 3 runs")
    assert [taken for taken, _, _ in looks] == sorted(taken for taken, _, _ in looks)
    for config, run in zip(together, runs, strict=True):
        one = train(config.with_settings({"out": str(tmp_path / "alone")}))
        assert run.steps["loss"].tolist() == one.steps["loss"].tolist()
        assert weights(config, run) == weights(config, one)


def test_after_one_has_failed_no_other_begins_and_what_was_recorded_is_kept(tmp_path: Path) -> None:
    far: dict[str, Any] = {"optimizer": "sgd", "lr": 1e30}
    configs = [asked(tmp_path, 0), asked(tmp_path, 1).with_settings(far), asked(tmp_path, 2)]
    with pytest.raises(TrainingError, match=r"the loss became .* at step \d"):
        train_all(configs, jobs=1)
    assert [Run.open(tmp_path / name).status for name in ("s0", "s1")] == ["finished", "failed"]
    assert not (tmp_path / "s2").exists()


def test_a_process_ended_from_outside_is_one_clear_line(tmp_path: Path) -> None:
    def end(taken: int, steps: int, said: str) -> None:
        if taken:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(TrainingError, match="ended from outside"):
        train_all([asked(tmp_path, 0, steps=100_000)], jobs=1, progress=end)
    assert Run.open(tmp_path / "s0").status == "crashed"


def test_what_cannot_be_trained_is_told_before_any_training_begins(tmp_path: Path) -> None:
    one = asked(tmp_path, 0)
    with pytest.raises(ConfigError, match="jobs=0 is out of range"):
        train_all([one], jobs=0)
    with pytest.raises(ConfigError, match=r"two trainings would write the same run .*s0"):
        train_all([one, one.with_settings({"seed": 1})], jobs=2)
    with pytest.raises(ConfigError, match="no optimizer 'ars3'"):
        train_all([one, asked(tmp_path, 1).with_settings({"optimizer": "ars3"})], jobs=2)
    assert train_all([], jobs=2) == []
    assert not list(tmp_path.iterdir())
