"""Models and objectives of recorded runs: the weights of a checkpoint, and runs that cannot be rebuilt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lossscope.landscape import Recorder, Run, TrainConfig, checkpoints, load_weights, train
from lossscope.landscape.errors import RunError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with full checkpoints and with weights at its evaluations, on some of the training data."""
    config = TrainConfig(
        name="a",
        out=str(tmp_path_factory.mktemp("trained")),
        steps=6,
        batch_size=16,
        preset="economy",
        evaluations=4,
        measures=["trace"],
        checkpoints=2,
        weights_at_evaluations=True,
        curvature_samples=50,
    )
    return train(config).path


def test_the_objective_of_a_step_has_the_losses_that_were_recorded_there(trained: Path):
    run = Run.open(trained)
    steps = run.estimates.pivot(index="step", columns="measure", values="value")
    assert list(checkpoints(trained)) == steps.index.tolist()
    assert list(checkpoints(trained, resumable=True)) == [0, 6]
    for step in steps.index:
        objective = run.objective(step)
        assert objective.value() == steps["loss"][step]
        assert objective.data_hash == run.manifest["data_hash"]
        for name, p in run.model(step).named_parameters():
            assert torch.equal(p, dict(objective.model.named_parameters())[name])
    assert len({run.objective(step).value() for step in steps.index}) == len(steps)


def test_each_call_gives_a_model_of_its_own(trained: Path):
    run = Run.open(trained)
    first = run.model(6)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(run.model(6).parameters()).abs().sum() > 0


def test_a_step_without_a_checkpoint_is_told_with_those_that_have_one(trained: Path):
    there = ", ".join(map(str, checkpoints(trained)))
    with pytest.raises(RunError, match=rf"run .* has no checkpoint at step 5: there is one at {there}$"):
        Run.open(trained).objective(5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_hash": "0" * 64}, r"the data of digits-mlp have the hash \w+, the run was recorded on 0{12}: use the "),
        ({"config": {"workload": "mine.py:task"}}, r"cannot be rebuilt \(unknown workload 'mine.py:task'"),
        ({"config": {}}, r"was not made by `lossscope train`, so its model and data are unknown: build the model"),
    ],
)
def test_a_run_that_cannot_be_rebuilt_is_one_line_that_names_what_to_do(
    change: dict[str, object], words: str, trained: Path, tmp_path: Path
):
    path = Path(shutil.copytree(trained, tmp_path / "run"))
    manifest = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(manifest | change))
    with pytest.raises(RunError, match=words) as caught:
        Run.open(path).model(6)
    assert "\n" not in str(caught.value)
    assert f"load_weights(checkpoints('{path}')[6], model)" in str(caught.value)


def test_the_weights_of_an_own_loop_are_loaded_as_the_message_says(tmp_path: Path):
    model = torch.nn.Linear(3, 2)
    objective = Objective(model, CrossEntropy(), [(torch.randn(6, 3), torch.arange(6) % 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, optimizer, objective, steps=1, measures=["loss"], overhead=1) as recorder:
        objective.value()
        loss = CrossEntropy()(model, objective.data.batches[0])
        loss.backward()
        optimizer.step()
        recorder.step(loss)
    with pytest.raises(RunError, match="was not made by `lossscope train`"):
        Run.open(tmp_path / "run").objective(1)
    again = torch.nn.Linear(3, 2)
    load_weights(checkpoints(str(tmp_path / "run"))[1], again)
    assert torch.equal(again.weight, model.weight)
