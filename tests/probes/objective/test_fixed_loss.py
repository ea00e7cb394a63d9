"""The loss on fixed data against the training loss, where batch norm has young statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.probes.objective.fixed_loss import batch_norm_note
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective


def young() -> tuple[nn.Module, tuple[Any, Any]]:
    """Return a network whose running statistics are those of before the training, and its data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16, momentum=0.001), nn.ReLU(), nn.Linear(16, 3))
        batch = 40 + 30 * torch.randn(24, 4), torch.randint(0, 3, (24,))
    return model, batch


def test_the_cause_is_named_with_its_remedy() -> None:
    model, batch = young()
    with torch.no_grad():
        training = float(F.cross_entropy(model.train()(batch[0]), batch[1]))
    model[1].reset_running_stats()  # type: ignore[index, union-attr, operator]
    objective = Objective(model, CrossEntropy(), [batch])
    value = objective.value()
    assert value > 3 * training
    note = batch_norm_note(objective, value, training)
    assert note is not None
    assert f"the loss on the fixed data is {value:.4g} in eval mode" in note
    assert f"near the training loss {training:.4g}" in note
    assert "mode='frozen'" in note
    assert objective.mode == "eval"
    assert batch_norm_note(Objective(model, CrossEntropy(), [batch], mode="frozen"), value, training) is None
    assert batch_norm_note(objective, value, value / 2) is None
    other = Objective(model, CrossEntropy(), [(batch[0], (batch[1] + 1) % 3)])  # other data, not other statistics
    model.train()
    model[1].momentum = 0.5  # type: ignore[index, union-attr, operator]
    for _ in range(50):
        model(batch[0])
    assert batch_norm_note(other, other.value(), other.value() / 10) is None


def test_a_network_without_running_statistics_is_not_compared() -> None:
    objective = Objective(nn.Linear(4, 3), CrossEntropy(), [young()[1]])
    assert batch_norm_note(objective, 1e6, 0.1) is None


@pytest.mark.slow
def test_a_run_says_it_once(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, batch = young()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    objective = Objective(model, CrossEntropy(), [batch])
    with Recorder(tmp_path / "run", model, optimizer, objective, "economy", steps=2, overhead=1) as recorder:
        for _ in range(2):
            loss = F.cross_entropy(model(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    assert capsys.readouterr().err.count("by the running statistics of batch norm") == 1
    run = Run.open(tmp_path / "run")
    assert run.manifest["fixed_loss"].startswith("step 1: the loss on the fixed data is")
    assert set(run.probes["additivity"]) == {"mean of samples"}
