"""Checkpoints of weights at curvature evaluations, beside the full ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape.errors import RunError
from lossscope.landscape.recording.checkpoints import (
    checkpoints,
    has_optimizer,
    load_checkpoint,
    load_weights,
    optimizer_state,
    save_checkpoint,
    save_weights,
)
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective

STEPS = 12
EVALUATIONS = [0, 5, 8]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def record(path: Path, *, steps: int | None = STEPS, **settings: Any) -> dict[int, dict[str, Tensor]]:
    """Record a run and return the weights after each step."""
    torch.manual_seed(0)
    model = network()
    batch = torch.randn(16, 4), torch.randint(0, 3, (16,))
    objective = Objective(model, CrossEntropy(), [batch])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    chosen = {"evaluate_at": EVALUATIONS, "measures": ["loss"], "weights_at_evaluations": True, "overhead": 1}
    weights = {0: {name: one.clone() for name, one in model.state_dict().items()}}
    with Recorder(path, model, optimizer, objective, steps=steps, **{**chosen, **settings}) as recorder:
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            loss = CrossEntropy()(model, batch)
            loss.backward()
            optimizer.step()
            weights[step] = {name: one.clone() for name, one in model.state_dict().items()}
            recorder.step(loss)
            if step == 10 and recorder.steps == 10 and settings.get("checkpoints") == 0:
                recorder.evaluate()
    return weights


def kinds(path: Path) -> dict[int, bool]:
    """Return, for each checkpoint, True if it is a full one."""
    return {step: has_optimizer(folder) for step, folder in checkpoints(path).items()}


def gaps(path: Path) -> list[tuple[int, list[str], str]]:
    found = Run.open(path).manifest.get("curvature_gaps", [])
    return [(one["step"], one.get("measures", []), one["why"]) for one in found if one["instrument"] == "checkpoints"]


def test_the_weights_are_those_of_the_evaluations_and_the_full_checkpoints_stay(tmp_path: Path):
    weights = record(tmp_path / "run", checkpoints=3)
    record(tmp_path / "without", checkpoints=3, weights_at_evaluations=False)
    full = list(checkpoints(tmp_path / "without"))
    assert len(full) == 3
    assert kinds(tmp_path / "run") == {step: step in full for step in sorted({*full, *EVALUATIONS})}
    assert list(checkpoints(tmp_path / "run", resumable=True)) == full
    for step, folder in checkpoints(tmp_path / "run").items():
        model = network()
        assert load_weights(folder, model) is None
        assert all(torch.equal(one, weights[step][name]) for name, one in model.state_dict().items())


def test_an_evaluation_on_demand_has_weights_too_and_so_has_the_end_of_a_run_without_a_plan(tmp_path: Path):
    record(tmp_path / "planned", checkpoints=0)
    assert kinds(tmp_path / "planned") == {0: False, 5: False, 8: False, 10: False, STEPS: True}
    record(tmp_path / "unplanned", steps=None, evaluate_at=None)
    evaluated = set(Run.open(tmp_path / "unplanned").probes["step"])
    assert STEPS in evaluated
    assert kinds(tmp_path / "unplanned") == dict.fromkeys(sorted(evaluated), False)


def test_place_for_the_last_full_checkpoint_is_kept(tmp_path: Path):
    # weights take 1,034 bytes and are expected to take 16,644, a full checkpoint 17,092
    record(tmp_path / "run", checkpoints=1, disk=35_000)
    assert kinds(tmp_path / "run") == {0: False, 5: False, STEPS: True}
    ((step, measures, why),) = gaps(tmp_path / "run")
    assert (step, measures) == (8, ["weights"])
    assert why.startswith("disk: a checkpoint takes ")


def test_weights_that_do_not_fit_under_the_cap_are_missing_and_do_not_wait(tmp_path: Path):
    with pytest.warns(match="overhead"):
        record(tmp_path / "run", checkpoints=1, overhead=1e-9, evaluate_at=[0, 8])
    assert kinds(tmp_path / "run") == {STEPS: True}
    assert [(step, measures) for step, measures, _ in gaps(tmp_path / "run")] == [(0, ["weights"]), (8, ["weights"])]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run with weights of step 3."""
    RunStore.create(tmp_path / "run", {}).close("finished", "done")
    save_weights(tmp_path / "run", 3, network())
    return tmp_path / "run"


def test_no_run_resumes_from_weights(run: Path):
    model = network()
    (folder,) = checkpoints(run).values()
    assert sorted(one.name for one in folder.iterdir()) == ["checkpoint.json", "weights.safetensors"]
    assert not checkpoints(run, resumable=True)
    with pytest.raises(RunError, match=r"cannot be loaded: it lacks optimizer\.pt"):
        load_checkpoint(folder, model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(RunError, match=r"cannot be read: it lacks optimizer\.pt"):
        optimizer_state(folder)


def test_altered_weights_are_an_error(run: Path):
    (folder,) = checkpoints(run).values()
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(RunError, match=r"weights\.safetensors was altered"):
        load_weights(folder, network())


def test_a_full_checkpoint_replaces_weights_and_weights_replace_nothing(run: Path):
    model = network()
    assert save_weights(run, 3, model) == save_checkpoint(run, 3, model, torch.optim.AdamW(model.parameters()))
    again = network()
    load_checkpoint(checkpoints(run, resumable=True)[3], again, torch.optim.AdamW(again.parameters()))
    assert torch.equal(again[0].weight, model[0].weight)
    save_weights(run, 3, network())
    assert kinds(run) == {3: True}
