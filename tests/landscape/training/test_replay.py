"""Replay of second gradients: counts by window, and runs that cannot be replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.run import Run
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.replay import second_gradients
from lossscope.landscape.training.training import train


def config(out: Path, **more: Any) -> TrainConfig:
    return TrainConfig.of({"out": str(out), "preset": "economy", "evaluations": 0, "checkpoints": 0, **more})


def test_second_gradients_are_counted_by_window(tmp_path: Path) -> None:
    run = train(config(tmp_path, optimizer="ars2-lazy", steps=23))  # steps 1, 6, 11, 16, 21
    assert second_gradients(run, 10) == {"replay_counts": [2, 2, 1], "replay_window": 10}


def test_runs_that_cannot_be_replayed_are_one_line_and_leave_no_folder(tmp_path: Path) -> None:
    plain = train(config(tmp_path, optimizer="adamw", steps=2, name="plain"))
    timer = {"optimizer": "ars2-timer", "steps": 4, "name": "timer"}
    with pytest.raises(ConfigError, match=r"replay = 'aga' cannot be read: .*; train it first, or leave replay out"):
        train(config(tmp_path, replay="aga", **timer))
    with pytest.raises(
        ConfigError, match="replay needs an optimizer that can replay, such as ars2-timer, got ars2-aga"
    ):
        train(config(tmp_path, replay="plain", optimizer="ars2-aga", steps=4, name="timer"))
    (plain.path / "run.json").write_text((plain.path / "run.json").read_text().replace('"finished"', '"failed"'))
    with pytest.raises(ConfigError, match="replay = 'plain' must be a finished run, it is failed"):
        train(config(tmp_path, replay="plain", **timer))
    with pytest.raises(RunError, match=r"the run name '\.\./elsewhere' starts with a dot"):
        train(config(tmp_path, replay="../elsewhere", **timer))
    assert not (tmp_path / "timer").exists()


def test_a_run_that_does_not_say_where_it_ascended_is_refused(tmp_path: Path) -> None:
    run = train(config(tmp_path, optimizer="adamw", steps=2))
    run.steps["synced"] = None
    with pytest.raises(ConfigError, match="does not say at which steps it took a second gradient: replay another run"):
        second_gradients(run, 1)
    assert Run.open(run.path).status == "finished"
