"""Losses on all training data and on test data, at the curvature evaluations of a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.landscape.errors import LandscapeError, RecordingWarning
from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective


class Loop:
    """A small training, with training data of which the first ten samples are those of curvature, and test data."""

    def __init__(self) -> None:
        chance = torch.Generator().manual_seed(3)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
        self.train = torch.randn(30, 4, generator=chance), torch.randint(0, 3, (30,), generator=chance)
        self.test = torch.randn(12, 4, generator=chance), torch.randint(0, 3, (12,), generator=chance)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)

    def loss(self, data: tuple[Tensor, Tensor], count: int | None = None) -> Objective:
        return Objective(self.model, CrossEntropy(), [(data[0][:count], data[1][:count])])

    def record(self, path: Path, objective: Objective | None, **settings: Any) -> dict[int, tuple[float, float]]:
        """Record four steps, and return the losses on training and test data after each, computed beside it."""
        found = {}
        with Recorder(path, self.model, self.optimizer, objective, "economy", steps=4, **settings) as recorder:
            found[0] = self.losses()
            for step in range(1, 5):
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.model(self.train[0]), self.train[1])
                loss.backward()
                self.optimizer.step()
                found[step] = self.losses()
                recorder.step(loss)
        return found

    @torch.no_grad()
    def losses(self) -> tuple[float, float]:
        self.model.eval()
        found = [float(F.cross_entropy(self.model(x), y)) for x, y in (self.train, self.test)]
        self.model.train()
        return found[0], found[1]


@pytest.fixture
def loop() -> Loop:
    torch.manual_seed(0)
    return Loop()


def test_every_evaluation_has_both_losses_with_the_provenance_of_their_data(loop: Loop, tmp_path: Path):
    whole, test = loop.loss(loop.train), loop.loss(loop.test)
    # `measures` does not leave them out: a measure is compared at equal losses
    settings = {"train": whole, "test": test, "evaluate_at": [0, 2, 3], "measures": ["trace"], "overhead": 1}
    expected = loop.record(tmp_path / "run", loop.loss(loop.train, 10), **settings)
    run = Run.open(tmp_path / "run")
    for place, (name, data) in enumerate({"train_loss": whole, "test_loss": test}.items()):
        rows = run.estimates[run.estimates["measure"] == name]
        assert rows["step"].tolist() == [0, 2, 3]
        for row in rows.to_dict("records"):
            assert row["value"] == pytest.approx(expected[row["step"]][place], rel=1e-6)
            assert row["low"] <= expected[row["step"]][place] * (1 + 1e-6)
            assert row["converged"]
            assert row["gradients"] > 0
            assert row["data_hash"] == data.data_hash != run.manifest["data_hash"]
            assert (row["additivity"], row["mode"], row["dtype"]) == ("mean of samples", "eval", "float32")
    assert set(run.estimates["measure"]) == {"loss", "train_loss", "test_loss", "trace"}


def test_where_curvature_is_of_all_training_data_nothing_is_computed_twice(loop: Loop, tmp_path: Path):
    calls = 0

    class Counted(CrossEntropy):
        def __call__(self, model: nn.Module, batch: Any) -> Tensor:
            nonlocal calls
            calls += 1
            return super().__call__(model, batch)

    def evaluated(name: str, train: bool) -> tuple[int, Run]:
        nonlocal calls
        loss = Counted()
        fixed, same = (Objective(loop.model, loss, [loop.train]) for _ in range(2))
        before = calls
        more = {"train": same} if train else {}
        loop.record(tmp_path / name, fixed, evaluations=2, measures=["loss"], overhead=1, **more)
        return calls - before, Run.open(tmp_path / name)

    alone, _ = evaluated("alone", train=False)
    both, run = evaluated("both", train=True)
    assert both == alone
    rows = run.probes.pivot(index="step", columns="measure")
    for column in ("value", "low", "high", "data_hash", "additivity"):
        assert rows[column, "train_loss"].tolist() == rows[column, "loss"].tolist()
    assert (rows["gradients", "train_loss"] == 0).all()
    assert (rows["gradients", "loss"] > 0).all()


def test_under_the_cap_they_are_missing_with_the_reason_and_a_shared_number_is_not(loop: Loop, tmp_path: Path):
    fixed = loop.loss(loop.train)
    with pytest.warns(RecordingWarning, match="overhead"):
        loop.record(tmp_path / "run", fixed, train=fixed, test=loop.loss(loop.test), evaluations=2, overhead=1e-9)
    run = Run.open(tmp_path / "run")
    found = {int(step): set(rows["measure"]) for step, rows in run.probes.groupby("step")}
    assert all({"loss", "train_loss"} <= names and "test_loss" not in names for names in found.values())
    (entry,) = [one for one in run.manifest["curvature_gaps"] if (one["step"], one["instrument"]) == (0, "curvature")]
    assert entry["measures"] == ["test_loss"]
    assert entry["why"].startswith("overhead: it would exceed the cap")


def test_a_loss_that_fails_is_missing_alone(loop: Loop, tmp_path: Path):
    broken = Objective(loop.model, CrossEntropy(), [(loop.test[0][:, :3], loop.test[1])])
    fixed = loop.loss(loop.train)
    with pytest.warns(RecordingWarning, match="test_loss"):
        loop.record(tmp_path / "run", fixed, train=fixed, test=broken, evaluations=2, measures=["trace"], overhead=1)
    run = Run.open(tmp_path / "run")
    assert set(run.probes["measure"]) == {"loss", "train_loss", "trace"}
    assert {tuple(one["measures"]) for one in run.manifest["curvature_gaps"]} == {("test_loss",)}


def test_a_loss_without_evaluations_or_of_other_parameters_is_refused(loop: Loop, tmp_path: Path):
    with pytest.raises(LandscapeError, match=r"test= is evaluated with the curvature, so it needs objective=: pass"):
        loop.record(tmp_path / "run", None, test=loop.loss(loop.test))
    fixed = loop.loss(loop.train, 10)
    other = Loop().loss(loop.train)
    with pytest.raises(LandscapeError, match=r"parameter '0\.weight' is not one of the 4 trainable"):
        loop.record(tmp_path / "run", fixed, train=other)
    part = fixed.restricted(["0.weight"])
    with pytest.raises(LandscapeError, match=r"train= must be a loss of the parameters of objective=, got one of 1 "):
        loop.record(tmp_path / "run", fixed, train=part)
    assert not (tmp_path / "run").exists()
