"""Trainings of a Lightning `Trainer`, recorded by the callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

L = pytest.importorskip("lightning")

from lossscope import ARS2Neo, Objective, Run  # noqa: E402
from lossscope.landscape.integrations.lightning import RecorderCallback  # noqa: E402
from lossscope.probes import CrossEntropy  # noqa: E402
from lossscope.reports import render, sharpness  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "max_epochs": 2,
}
BATCHES = 6


def batches() -> list[Any]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 6, generator=g), torch.randint(0, 3, (8,), generator=g)) for _ in range(BATCHES)]


class Automatic(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
        self.losses: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


class TwoPasses(Automatic):
    automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        optimizer = self.optimizers()
        for p in optimizer.optimizer.passes(self):
            p.backward(cross_entropy(self(batch[0]), batch[1]))
        loss = optimizer.step()
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return ARS2Neo(self.named_parameters(), lr=1e-2, mode="sync", rho=0.1)


class Closure(TwoPasses):
    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        def closure() -> torch.Tensor:
            self.zero_grad()
            loss = cross_entropy(self(batch[0]), batch[1])
            self.manual_backward(loss)
            return loss

        loss = self.optimizers().step(closure)
        self.losses.append(float(loss))
        return loss


def fit(make: Any, callbacks: list[Any], folder: Path, resume: Path | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    module = make()
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer = L.Trainer(
        callbacks=callbacks, default_root_dir=folder, **QUIET | {"enable_checkpointing": False} | settings
    )
    trainer.fit(module, loader, ckpt_path=resume)
    return module


def callback(folder: Path, **more: Any) -> RecorderCallback:
    def objective(module: nn.Module) -> Objective:
        return Objective(module, CrossEntropy(), batches()[:2])

    settings = {"overhead": 1, "evaluations": 2, "measures": ["lambda_max"], **more}
    return RecorderCallback(folder / "run", objective, "economy", **settings)


@pytest.mark.parametrize(
    ("make", "accumulated", "settings"),
    [
        (Automatic, 1, {}),
        (Automatic, 3, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5}),
        (Automatic, 1, {"precision": "bf16-mixed"}),
        (TwoPasses, 1, {}),
        (Closure, 1, {}),
    ],
)
def test_the_callback_changes_no_bit_and_takes_the_loss(
    make: Any, accumulated: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    recorded = fit(make, [callback(tmp_path)], tmp_path, **settings)
    plain = fit(make, [], tmp_path, **settings)
    for p, q in zip(recorded.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(p, q)
    run = Run.open(tmp_path / "run")
    count = 2 * BATCHES // accumulated
    assert (run.status, run.steps["step"].tolist()) == ("finished", list(range(1, count + 1)))
    means = torch.tensor(recorded.losses).view(count, accumulated).mean(1).tolist()
    assert run.steps["loss"].tolist() == pytest.approx(means, rel=1e-6)
    assert run.probes.loc[run.probes["measure"] == "lambda_max", "step"].tolist() == [0, count]
    assert "λ_max" in render(sharpness([run]), "text")


def test_passes_and_a_closure_take_the_same_steps(tmp_path: Path) -> None:
    by_passes, by_closure = (fit(make, [], tmp_path) for make in (TwoPasses, Closure))
    for p, q in zip(by_passes.state_dict().values(), by_closure.state_dict().values(), strict=True):
        assert torch.equal(p, q)


def test_a_training_that_fails_is_a_failed_run(tmp_path: Path) -> None:
    class Failing(Automatic):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if index == 4:
                raise ValueError("no more")
            return super().training_step(batch, index)

    with pytest.raises(ValueError, match="no more"):
        fit(Failing, [callback(tmp_path)], tmp_path)
    run = Run.open(tmp_path / "run")
    assert (run.status, len(run.steps)) == ("failed", 4)
    assert "ValueError: no more" in run.ends


def test_a_resumed_training_continues_its_run(tmp_path: Path) -> None:
    kept = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", save_last=True)
    fit(Automatic, [callback(tmp_path), kept], tmp_path, max_epochs=1, enable_checkpointing=True)
    resumed = fit(Automatic, [callback(tmp_path)], tmp_path, resume=tmp_path / "kept" / "last.ckpt")
    run = Run.open(tmp_path / "run")
    assert run.steps["step"].tolist() == list(range(1, 2 * BATCHES + 1))
    assert len(run.manifest["sessions"]) == 2
    assert resumed.losses == pytest.approx(run.steps["loss"].tolist()[BATCHES:])


def test_without_an_objective_there_are_steps_alone(tmp_path: Path) -> None:
    fit(Automatic, [RecorderCallback(tmp_path / "run", overhead=1)], tmp_path)
    run = Run.open(tmp_path / "run")
    assert len(run.steps) == 2 * BATCHES
    assert run.probes.empty
