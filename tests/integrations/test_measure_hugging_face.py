"""`causal_lm`: the loss of a model of Hugging Face on a text, all from disk (extra `transformers`)."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lossscope.landscape import Run, measure
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.unrecorded.hugging_face import causal_lm
from lossscope.landscape.unrecorded.loss import checkpoint_loss
from lossscope.landscape.unrecorded.measure import carry_out, planned
from lossscope.landscape.unrecorded.sources import find_checkpoints

try:
    import tokenizers
    import transformers
    from transformers import LlamaForCausalLM
except (ImportError, RuntimeError) as error:
    pytest.skip(f"needs the extra transformers: {error}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")

WORDS = [f"w{n}" for n in range(40)]
TEXT = " ".join(WORDS[n * n % 40] for n in range(200))


def tokenizer(words: list[str]) -> transformers.PreTrainedTokenizerFast:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def model(seed: int, **changes: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"vocab_size": 40, "num_key_value_heads": 1, "max_position_embeddings": 16, "tie_word_embeddings": True}
    return LlamaForCausalLM(transformers.LlamaConfig(**sizes | settings | changes))


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder like that of a trainer, whose second checkpoint is in shards; no network can be reached."""

    def unreachable(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    for step, more in ((10, {}), (20, {"max_shard_size": "3KB"})):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        model(step).save_pretrained(folder, **more)
        tokenizer(WORDS).save_pretrained(folder)
    (tmp_path / "text.txt").write_text(TEXT)
    assert (tmp_path / "out" / "checkpoint-20" / "model.safetensors.index.json").is_file()
    return tmp_path / "out"


def test_the_loss_is_that_of_the_model_on_the_blocks(out: Path) -> None:
    before = dict(os.environ)
    found = causal_lm(out / "checkpoint-10", out.parent / "text.txt", sequence=12, samples=5, batch=2)
    assert dict(os.environ) == before
    assert found.details == {"text": "text.txt", "sequence": 12, "samples": 5, "batch": 2}
    loss, ids = found.objective, torch.tensor([int(word[1:]) for word in TEXT.split()])
    blocks = torch.stack([ids[12 * n : 12 * n + 12] for n in (0, 3, 6, 9, 12)])  # of 16
    assert torch.equal(torch.cat([one["input_ids"] for one in loss.data.batches]), blocks)
    saved = LlamaForCausalLM.from_pretrained(out / "checkpoint-10").eval()
    loss.model.load_state_dict(saved.state_dict())
    logits = saved(input_ids=blocks).logits[:, :-1]
    known = F.cross_entropy(logits.reshape(-1, 40), blocks[:, 1:].reshape(-1))
    assert loss.value() == pytest.approx(float(known), rel=1e-6)
    assert (loss.samples, loss.loss_fn.unit) == (55, "nats")


def test_checkpoints_whole_and_in_shards_are_measured_with_tied_weights_once(out: Path, tmp_path: Path) -> None:
    ready = causal_lm(out / "checkpoint-10", out.parent / "text.txt", sequence=8, samples=4)
    loss = checkpoint_loss(ready.objective, ["loss", "lambda_max"], None, ready.place, ready.details)
    done = carry_out(planned(find_checkpoints([out]), loss, tmp_path / "run", matrices=True))
    assert (done.steps, done.absent, done.notes) == ((10, 20), (), ())
    run = Run.open(tmp_path / "run")
    assert run.manifest["config"]["sequence"] == 8
    assert run.loss_unit == "nats"
    own = model(20).eval()
    ready.objective.model.load_state_dict(own.state_dict())
    measured = run.probes[run.probes["measure"] == "loss"].set_index("step")["value"]
    assert measured[20] == pytest.approx(ready.objective.value(), rel=1e-6)
    assert "lm_head.weight" not in set(run.tensors["tensor"])
    assert run.manifest["model"]["parameters"] == sum(p.numel() for p in own.parameters())
    alone = measure(out, into=tmp_path / "alone")
    assert alone.steps == (10, 20)
    spectra = Run.open(tmp_path / "alone").spectra
    assert set(spectra["tensor"]) == set(run.spectra["tensor"])
    assert len(spectra) == len(run.spectra)


def other_tokenizer(folder: Path) -> None:
    tokenizer(["w0", *(f"x{n}" for n in range(60)), *WORDS[1:]]).save_pretrained(folder)


def spoil(name: str, words: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(words)


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def encoder(folder: Path) -> None:
    transformers.T5Config().save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (
            other_tokenizer,
            {},
            r"the tokenizer in .*checkpoint-10 is of another model: the text has token \d+, the model 40",
        ),
        (spoil("tokenizer.json", "{"), {}, r"has no tokenizer that can be read: "),
        (without_tokenizer, {}, r"has no tokenizer that can be read: "),
        (spoil("config.json", "{"), {}, r"is no causal language model that can be built: "),
        (spoil("config.json", json.dumps({"model_type": "nobodys"})), {}, r"is no causal language model"),
        (encoder, {}, r"is no causal language model that can be built: "),
        (
            lambda folder: (folder / "config.json").unlink(),
            {},
            r"there is no .*config.json; name the folder of a model",
        ),
        (lambda folder: None, {"sequence": 17}, r"--sequence 17 is longer than the 16 positions"),
        (lambda folder: None, {"sequence": 1}, r"--sequence must be at least 2"),
        (lambda folder: None, {"samples": 0}, r"--samples must be at least 1, got 0"),
        (
            lambda folder: (folder.parents[1] / "text.txt").write_text("w1 w2"),
            {"sequence": 8},
            r"has 2 tokens, fewer than",
        ),
        (lambda folder: (folder.parents[1] / "text.txt").write_bytes(b"\xff\xfe"), {}, r"is no UTF-8 text \(byte 0\)"),
        (lambda folder: (folder.parents[1] / "text.txt").unlink(), {}, r"cannot be read: No such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    change: Callable[[Path], object], settings: dict[str, int], words: str, out: Path
) -> None:
    change(out / "checkpoint-10")
    with pytest.raises(ConfigError, match=words) as caught:
        causal_lm(out / "checkpoint-10", out.parent / "text.txt", **{"sequence": 8, **settings})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused_by_name(out: Path, tmp_path: Path) -> None:
    ready = causal_lm(out / "checkpoint-10", out.parent / "text.txt", sequence=8, samples=2)
    shutil.rmtree(out / "checkpoint-20")
    model(3, hidden_size=4).save_pretrained(out / "checkpoint-20")
    with pytest.raises(ConfigError, match=r"checkpoint-20 do not fit the model: .* has the shape"):
        measure(out / "checkpoint-20", into=tmp_path / "run", objective=ready.objective, measures=["loss"])
