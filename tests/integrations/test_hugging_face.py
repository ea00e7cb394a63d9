"""Trainings of a Hugging Face `Trainer` with models built from config, recorded by the callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("accelerate")

from lossscope import ARS2Neo, Objective, Run  # noqa: E402
from lossscope.landscape.errors import ConfigError, LandscapeError  # noqa: E402
from lossscope.landscape.integrations.hugging_face import (  # noqa: E402
    RecorderCallback,
    TwoPassTrainerMixin,
    first_batches,
)
from lossscope.probes.objective.hugging_face import HuggingFaceLoss  # noqa: E402
from lossscope.reports import overview, render, sharpness  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

STEPS = 5


class TwoPassTrainer(TwoPassTrainerMixin, transformers.Trainer):
    pass


def gpt2(**more: Any) -> torch.nn.Module:
    settings = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, **special, **more))


def bert() -> torch.nn.Module:
    settings = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**settings, intermediate_size=16, max_position_embeddings=8, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def samples(count: int = 40, *, padded: bool = False) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (count, 8), generator=g)
    labels = ids.clone()
    if padded:
        labels[1::2, 3:] = -100
    return [{"input_ids": one, "labels": label} for one, label in zip(ids, labels, strict=True)]


def train(
    folder: Path,
    callbacks: list[Any],
    *,
    make: Any = gpt2,
    data: Any = None,
    optimizer: Any = None,
    trainer: Any = transformers.Trainer,
    resume: bool = False,
    **settings: Any,
) -> tuple[torch.nn.Module, list[float]]:
    torch.manual_seed(0)
    model = make()
    arguments = transformers.TrainingArguments(
        str(folder / "out"),
        **{
            "per_device_train_batch_size": 4,
            "max_steps": STEPS,
            "report_to": [],
            "use_cpu": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **settings,
        },
    )
    given = (None if optimizer is None else optimizer(model), None)
    made = trainer(model, arguments, train_dataset=data or samples(), callbacks=callbacks, optimizers=given)
    made.train(resume_from_checkpoint=resume)
    return model, [row["loss"] for row in made.state.log_history if "loss" in row]


def callback(folder: Path, **more: Any) -> RecorderCallback:
    settings = {"overhead": 1, "evaluations": 2, "measures": ["lambda_max"], **more}
    return RecorderCallback(folder / "run", preset="economy", **settings)


def sync(model: torch.nn.Module) -> ARS2Neo:
    return ARS2Neo(model.named_parameters(), lr=1e-2, mode="sync", rho=0.1)


TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 3},
    "accumulated, padded": {"gradient_accumulation_steps": 3, "data": samples(padded=True)},
    "two passes": {"optimizer": sync, "trainer": TwoPassTrainer},
    "two passes, accumulated": {"optimizer": sync, "trainer": TwoPassTrainer, "gradient_accumulation_steps": 3},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"bf16": True},
    "classification": {"make": bert, "data": [{**one, "labels": i % 3} for i, one in enumerate(samples())]},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_callback_changes_no_bit_and_takes_the_loss_of_the_trainer(name: str, tmp_path: Path) -> None:
    recorded, losses = train(tmp_path, [callback(tmp_path)], **TRAININGS[name])
    plain, _ = train(tmp_path, [], **TRAININGS[name])
    for p, q in zip(recorded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    run = Run.open(tmp_path / "run")
    assert (run.status, run.steps["step"].tolist()) == ("finished", list(range(1, STEPS + 1)))
    assert run.steps["loss"].tolist() == pytest.approx(losses, rel=1e-6)
    assert run.probes.loc[run.probes["measure"] == "lambda_max", "step"].tolist() == [0, STEPS]
    assert "λ_max" in render(sharpness([run]), "text")
    assert render(overview([run]), "text")


def test_two_passes_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    data = samples(4)  # one batch, as the trainer shuffles
    settings = {"data": data, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    found, losses = train(tmp_path, [], optimizer=sync, trainer=TwoPassTrainer, make=no_dropout, **settings)
    torch.manual_seed(0)
    model = no_dropout()
    optimizer = sync(model)
    batch = {name: torch.stack([one[name] for one in data]) for name in data[0]}
    share = 7 / 8  # the trainer divides by all eight tokens, of which seven are predicted
    expected = []
    for _ in range(STEPS):
        for p in optimizer.passes(model):
            p.backward(share * model(**batch).loss)
        expected.append(float(optimizer.step()))
    assert losses == pytest.approx(expected, rel=1e-6)
    for p, q in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def no_dropout() -> torch.nn.Module:
    return gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).double()


def test_the_second_gradient_is_used(tmp_path: Path) -> None:
    run = Run.open(recorded_two_passes(tmp_path))
    assert run.steps["passes"].tolist() == [2] * STEPS
    assert (run.steps["adversarial_loss"] > run.steps["loss"]).all()


def recorded_two_passes(folder: Path) -> Path:
    train(folder, [callback(folder, evaluations=0)], optimizer=sync, trainer=TwoPassTrainer)
    return folder / "run"


def test_a_loss_that_the_trainer_computes_itself_is_missing_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, [callback(tmp_path, evaluations=0)], label_smoothing_factor=0.1)
    assert Run.open(tmp_path / "run").steps["loss"].isna().all()
    assert capsys.readouterr().err.count("does not differentiate the loss that the model returns") == 1


def test_a_resumed_training_continues_its_run(tmp_path: Path) -> None:
    even = {"lr_scheduler_type": "constant"}
    train(tmp_path, [callback(tmp_path)], save_strategy="steps", save_steps=3, max_steps=3, **even)
    resumed, _ = train(tmp_path, [callback(tmp_path)], resume=True, **even)
    run = Run.open(tmp_path / "run")
    assert run.steps["step"].tolist() == list(range(1, STEPS + 1))
    assert len(run.manifest["sessions"]) == 2
    plain, _ = train(tmp_path / "plain", [], **even)
    for p, q in zip(resumed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(("make", "shift"), [(gpt2, True), (bert, False)])
def test_the_default_objective_knows_if_labels_are_shifted(make: Any, shift: bool, tmp_path: Path) -> None:
    data = samples() if shift else [{**one, "labels": i % 3} for i, one in enumerate(samples())]
    made = callback(tmp_path)
    train(tmp_path, [made], make=make, data=data)
    objective = made.recorder._instruments.objective
    assert objective is not None
    assert isinstance(objective.loss_fn, HuggingFaceLoss)
    assert objective.loss_fn.shift is shift
    assert len(objective.data.batches) == 10


def test_an_objective_of_ones_own_is_taken(tmp_path: Path) -> None:
    batch = transformers.default_data_collator(samples(8))
    train(tmp_path, [callback(tmp_path, objective=lambda model: Objective(model, HuggingFaceLoss(), [batch]))])
    assert Run.open(tmp_path / "run").loss_unit == "nats"


def test_a_training_without_curvature_and_one_of_a_stream_have_no_curvature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "a", [callback(tmp_path / "a", objective=False)])
    assert Run.open(tmp_path / "a" / "run").probes.empty

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(samples())

    train(tmp_path / "b", [callback(tmp_path / "b")], data=Stream())
    assert "Stream has no length" in capsys.readouterr().err


def test_collating_draws_no_random_number_of_the_training() -> None:
    def collate(rows: list[Any]) -> Any:
        return {"noise": torch.rand(len(rows))}

    loader = torch.utils.data.DataLoader(samples(), batch_size=16, collate_fn=collate)
    model = gpt2()
    before = torch.get_rng_state()
    assert [len(one["noise"]) for one in first_batches(loader, 35, model)] == [16, 16, 3]
    assert torch.equal(before, torch.get_rng_state())


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="samples must be at least 1, got 0"):
        RecorderCallback(tmp_path, samples=0)
    with pytest.raises(ConfigError, match="objective must be"):
        RecorderCallback(tmp_path, True)
    with pytest.raises(LandscapeError, match="takes two passes, got AdamW"):
        train(tmp_path, [], trainer=TwoPassTrainer)
