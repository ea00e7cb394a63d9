"""Checkpoints of a Lightning training, measured: the files that its callback saves (extra `lightning`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lossscope.landscape import Run, measure
from lossscope.landscape.errors import ConfigError
from lossscope.probes import CrossEntropy, Objective

lightning = pytest.importorskip("lightning", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("default")


def batches() -> list[Any]:
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    return [(part, torch.arange(8) % 2) for part in torch.split(x, 8)]


class Module(lightning.LightningModule):
    def __init__(self, size: int = 4, noted: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, size), nn.Tanh(), nn.Linear(size, 2))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def trained(folder: Path, module: Module) -> Module:
    saving = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=2, save_last=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    lightning.Trainer(max_epochs=2, callbacks=[saving], **quiet).fit(module, loader)
    return module


def test_the_files_of_its_callback_are_measured_by_step(tmp_path: Path) -> None:
    module = trained(tmp_path / "saved", Module())
    assert {file.name for file in (tmp_path / "saved").iterdir()} > {"epoch=0-step=2.ckpt", "last.ckpt"}
    loss = Objective(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), CrossEntropy(), batches())
    done = measure(tmp_path / "saved", into=tmp_path / "run", objective=loss, measures=["loss"])
    assert done.steps == (2, 4, 6)
    assert done.notes == (
        "Left out last.ckpt: no step in the name.",
        "The names of the file begin with 'net.' and the others do not: the prefix was ignored.",
    )
    losses = Run.open(tmp_path / "run").probes["value"].tolist()
    own = Objective(module.net, CrossEntropy(), batches()).value()
    assert losses[-1] == pytest.approx(own, rel=1e-6)
    assert measure(tmp_path / "saved", into=tmp_path / "alone").steps == (2, 4, 6)


class Code:
    pass


def test_hyperparameters_that_hold_code_are_refused_by_name(tmp_path: Path) -> None:
    trained(tmp_path / "saved", Module(noted=Code()))
    with pytest.raises(ConfigError, match=r"holds more than tensors, and loading it could run code \(.*Code\): save"):
        measure(tmp_path / "saved" / "epoch=0-step=2.ckpt", into=tmp_path / "run")
