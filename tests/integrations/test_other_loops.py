"""The two lines of a recorder in the loops of other packages: `make integration-test`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops.training_loops import batches, descend, loss_of, mlp
from torch import nn

from lossscope.landscape.recording.recorder import Recorder
from lossscope.landscape.run import Run
from lossscope.probes.objective.objective import Objective

pytestmark = pytest.mark.filterwarnings("default")

Start = Callable[..., Callable[..., None]]


def lightning(start: Start) -> nn.Module:
    L = pytest.importorskip("lightning")

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return loss_of(self, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    class Callback(L.Callback):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            self.step = start(module, module.optimizers(), loss_of)

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *more: Any) -> None:
            self.step(outputs["loss"])

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    model = Module()
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    L.Trainer(max_epochs=1, callbacks=[Callback()], **quiet).fit(model, loader)
    return model


def accelerate(start: Start) -> nn.Module:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    plain = mlp()
    model, optimizer = accelerator.prepare(plain, torch.optim.AdamW(plain.parameters(), 1e-2))
    step = start(model, optimizer, loss_of)
    for batch in batches():
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        step(loss)
    return model


def loop(start: Start, model: nn.Module, data: list[Any], loss_fn: Any) -> nn.Module:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    descend(model, optimizer, start(model, optimizer, loss_fn, data), data, loss_fn)
    return model


def gpt2() -> tuple[Any, list[Any]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (6, 4, 8), generator=g)
    return transformers.GPT2LMHeadModel(config), [{"input_ids": one, "labels": one} for one in ids]


def hugging_face(start: Start) -> nn.Module:
    model, data = gpt2()
    return loop(start, model, data, lambda m, b: m(**b).loss)


def peft(start: Start) -> nn.Module:
    library = pytest.importorskip("peft")
    model, data = gpt2()
    config = library.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    return loop(start, library.get_peft_model(model, config), data, lambda m, b: m(**b).loss)


@pytest.mark.parametrize("trainer", [lightning, accelerate, hugging_face, peft])
def test_a_recorder_in_another_trainer_changes_no_bit(trainer: Callable[[Start], nn.Module], tmp_path: Path) -> None:
    recorders: list[Recorder] = []

    def start(model: nn.Module, optimizer: Any, loss_fn: Any, data: Any = None) -> Any:
        objective = Objective(model, loss_fn, (data or batches())[:1])
        more = {"steps": 6, "evaluations": 2}
        recorders.append(Recorder(tmp_path / "run", model, optimizer, objective, "economy", overhead=1, **more))
        return recorders[0].step

    torch.manual_seed(0)
    recorded = trainer(start)
    recorders[0].close(quiet=True)
    torch.manual_seed(0)
    plain = trainer(lambda *_: lambda *_: None)
    for p, q in zip(recorded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    run = Run.open(tmp_path / "run")
    assert run.steps["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert run.probes.loc[run.probes["measure"] == "lambda_max", "step"].tolist() == [0, 6]
