"""Distributed training of two processes; `test_words` has the second rank in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loops.training_loops import descend, loss_of, rank_batches
from torch import nn

from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

pytestmark = pytest.mark.slow


def spawned(folder: Path, who: str) -> list[bytes]:
    script = Path(__file__).with_name("ddp_loop.py")
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(folder), who], check=True, timeout=600)
    return [(folder / f"{who}-rank{rank}").read_bytes() for rank in (0, 1)]


def test_a_recorder_on_one_rank_or_on_all_changes_no_bit_and_ends_no_rank(tmp_path: Path) -> None:
    plain = spawned(tmp_path, "none")
    for who in ("first", "all"):
        assert spawned(tmp_path, who) == plain
        run = Run.open(tmp_path / who)
        assert run.manifest["config"] == {"rank": 0}
        assert (run.status, run.steps["step"].tolist()) == ("finished", list(range(1, 9)))
        assert run.probes.loc[run.probes["measure"] == "lambda_max", "step"].tolist() == [0, 8]


def test_rows_are_those_of_one_process_on_the_same_batches(tmp_path: Path) -> None:
    spawned(tmp_path, "all")
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.manual_seed(0)
    for layer in (model[0], model[2]):
        layer.reset_parameters()
    parts = [rank_batches(rank) for rank in (0, 1)]
    joined = [tuple(torch.cat(both) for both in zip(*pair, strict=True)) for pair in zip(*parts, strict=True)]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    objective = Objective(model, CrossEntropy(), parts[0][:1])
    recorder = Recorder(tmp_path / "one", model, optimizer, objective, "economy", steps=8, evaluations=2, overhead=1)
    descend(model, optimizer, recorder.step, joined, loss_of)
    recorder.close(quiet=True)
    one, two = Run.open(tmp_path / "one"), Run.open(tmp_path / "all")
    assert two.steps["gradient_norm"].tolist() == pytest.approx(
        one.steps["gradient_norm"].tolist(), rel=1e-4, nan_ok=True
    )
    for name in ("weight_norm", "gradient_norm", "update_norm"):
        assert two.tensors[name].tolist() == pytest.approx(one.tensors[name].tolist(), rel=1e-3, nan_ok=True)
    both = one.estimates.merge(two.estimates, on=["step", "measure", "tensor"], suffixes=("", "_2"))
    both = both[both["measure"].isin(["lambda_max", "loss", "trace"])]
    assert len(both) >= 4
    assert both["value_2"].tolist() == pytest.approx(both["value"].tolist(), rel=1e-3)


def test_sharded_parameters_are_refused_by_name(tmp_path: Path) -> None:
    for words in spawned(tmp_path, "sharded"):
        assert b"is a shard of a DTensor" in words
    assert not (tmp_path / "sharded").exists()
