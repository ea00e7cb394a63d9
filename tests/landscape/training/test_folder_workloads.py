"""Workloads whose data are files of the user's: small real images and text, written as CIFAR-10 and WikiText-2 are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from lossscope.cli.main import app
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.experiments.grid import read_grid
from lossscope.landscape.experiments.grid_check import resolved_configs
from lossscope.landscape.run import Run
from lossscope.landscape.training import workloads
from lossscope.landscape.training.cifar import augmented, cifar10
from lossscope.landscape.training.config import TrainConfig
from lossscope.landscape.training.resnet import resnet18
from lossscope.landscape.training.rotary_transformer import RotaryTransformer
from lossscope.landscape.training.setup import job_of
from lossscope.landscape.training.training import train
from lossscope.landscape.training.wikitext import wikitext2
from lossscope.landscape.training.workloads import digits, workload


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Handwritten digits, four times as large and gray, in six files of CIFAR-10's format."""
    scans, labels = digits(flat=False)
    pixels = scans.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1).mul(255).to(torch.uint8)
    rows = np.concatenate([labels.numpy().astype(np.uint8)[:, None], pixels.reshape(len(labels), -1).numpy()], axis=1)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for place, name in enumerate(names):
        (folder / f"{name}.bin").write_bytes(rows[4 * place : 4 * place + 4].tobytes())
    return tmp_path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Prose of Python's documentation, words separated by spaces."""
    from lossscope.landscape.training.prose import prose

    words = prose().split()
    (tmp_path / "wiki.train.tokens").write_text(" ".join(words[:2500]) + "\n" + " ".join(words[2500:2700]))
    (tmp_path / "wiki.valid.tokens").write_text(" ".join(words[2700:3300]) + "\n")
    return tmp_path


def test_images_are_read_as_they_were_written(images: Path) -> None:
    (train_x, train_y), (test_x, test_y), files = cifar10(images)
    scans, labels = digits(flat=False)
    assert train_y.tolist() == labels[:20].tolist()
    assert test_y.tolist() == labels[20:24].tolist()
    assert (train_x.shape, test_x.shape) == ((20, 3, 32, 32), (4, 3, 32, 32))
    mean, spread = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    back = train_x * spread.view(3, 1, 1) + mean.view(3, 1, 1)
    for channel in range(3):
        torch.testing.assert_close(back[:, channel, ::4, ::4], scans[:20, 0], atol=1 / 255, rtol=0)
    assert files["test_batch.bin"]["bytes"] == 4 * 3073


def test_words_are_read_in_windows_with_the_next_ones(text: Path) -> None:
    (inputs, labels), (test, _), vocabulary, files = wikitext2(text)
    words = (text / "wiki.train.tokens").read_text().split("\n")
    stream = [one for line in words for one in (*line.split(), "<eos>")]
    assert inputs.shape == labels.shape == (len(stream) // 256, 255)
    assert vocabulary == len(set(stream)) + 1  # and the unknown word
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    codes = {word: int(code) for word, code in zip(stream, inputs[0].tolist(), strict=False)}
    assert [codes[word] for word in stream[256:280] if word in codes] == [
        code for word, code in zip(stream[256:280], inputs[1, :24].tolist(), strict=True) if word in codes
    ]
    assert max(stream.count(word) for word in set(stream)) == stream.count(next(w for w, c in codes.items() if c == 0))
    assert int(test.max()) == vocabulary - 1  # a word that the training text lacks
    assert set(files) == {"wiki.train.tokens", "wiki.valid.tokens"}


def test_crops_flips_and_cutouts_move_pixels_and_cut_a_square() -> None:
    x = torch.arange(1.0, 32 * 32 + 1).view(1, 1, 32, 32).expand(200, 3, 32, 32)
    found = augmented(x, torch.Generator().manual_seed(0))
    assert torch.equal(found, augmented(x, torch.Generator().manual_seed(0)))
    flips, holes = 0, set()
    for one in found:
        assert torch.equal(one[0], one[2])
        kept = one[0][one[0] > 0]
        assert set(kept.tolist()) <= set(range(1, 1025))
        rows = one[0].gt(0).any(1).nonzero()
        row = one[0][int(rows[len(rows) // 2])]
        steps = set(torch.diff(row)[(row[:-1] > 0) & (row[1:] > 0)].tolist())
        assert steps in ({1.0}, {-1.0})
        flips += steps == {-1.0}
        holes.add(int(one[0].eq(0).sum()))
    assert 70 < flips < 130
    assert max(holes) <= 16 * 16 + 1024 - 28 * 28
    assert min(holes) >= 8 * 8  # of a hole in a corner


def test_the_rotary_transformer_has_the_founding_size_and_sees_no_later_word() -> None:
    torch.manual_seed(0)
    block = 4 * 512 * 512 + 3 * 512 * 2048 + 2 * 512 + 2 * 128
    assert sum(p.numel() for p in RotaryTransformer(40_479).parameters()) == 40_479 * 512 + 3 * block + 512
    small = RotaryTransformer(11, 16, 2, 2, 8, 32)
    ids = torch.randint(0, 11, (2, 9))
    later = ids.clone()
    later[:, 5:] = 0
    torch.testing.assert_close(small(ids)[:, :5], small(later)[:, :5])
    assert not torch.allclose(small(ids)[:, 5:], small(later)[:, 5:])
    swapped = ids[:, [1, 0, *range(2, 9)]]
    assert not torch.allclose(small(ids)[:, 2:], small(swapped)[:, 2:])  # positions matter


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow networks."""
    narrow = {"width": 32, "head_width": 8, "gated_width": 64}
    monkeypatch.setattr(workloads, "RotaryTransformer", partial(RotaryTransformer, **narrow))
    monkeypatch.setattr(workloads, "resnet18", partial(resnet18, width=4))
    workloads._read.cache_clear()


@pytest.mark.parametrize(("name", "folder", "batch"), [("cifar10-resnet18", "images", 8), ("wikitext-2", "text", 2)])
@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
def test_a_tiny_run_trains_and_rebuilds_its_loss(
    size: str, name: str, folder: str, batch: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if size == "small":
        request.getfixturevalue("small")
    place = request.getfixturevalue(folder)
    settings = {"workload": name, "data": str(place), "out": str(tmp_path / "runs"), "optimizer": "adamw@rms"}
    settings |= {"steps": 2, "batch_size": batch, "preset": "economy", "evaluations": 1, "measures": ["loss"]}
    settings |= {"curvature_samples": 2, "schedule": "cosine", "checkpoints": 2}
    run = train(TrainConfig.of(settings))
    assert run.steps["loss"].notna().all()
    assert run.steps["lr"].tolist() == pytest.approx([1e-3, 5e-4])
    assert run.steps["test_accuracy"].notna().any()
    assert set(run.manifest["data_files"]) == set(workload(name, str(place)).given.files)  # type: ignore[union-attr]
    measured = run.estimates.set_index("measure")["value"]
    assert {"loss", "train_loss", "test_loss"} <= set(measured.index)
    inputs, labels = job_of(TrainConfig.recorded(run.manifest["config"])).split.test
    model = run.model(2)
    model.eval()
    with torch.no_grad():
        expected = cross_entropy(model(inputs).flatten(0, -2), labels.flatten())
    last = run.estimates[run.estimates["step"] == run.estimates["step"].max()].set_index("measure")["value"]
    assert last["test_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_what_is_missing_is_said_with_what_to_put_where(tmp_path: Path, images: Path, text: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs --data FOLDER"):
        workload("wikitext-2")
    with pytest.raises(ConfigError, match=r"nowhere does not exist: put data_batch_1.bin.*cifar-10-binary.tar.gz"):
        workload("cifar10-resnet18", str(tmp_path / "nowhere"))
    (text / "wiki.valid.tokens").unlink()
    with pytest.raises(ConfigError, match=r"lacks wiki.valid.tokens: put"):
        wikitext2(text)
    with pytest.raises(ConfigError, match="digits-mlp has its data"):
        workload("digits-mlp", str(tmp_path))
    batch = images / "cifar-10-batches-bin" / "data_batch_2.bin"
    content = batch.read_bytes()
    batch.write_bytes(content[:-1])
    with pytest.raises(ConfigError, match=r"data_batch_2.bin has 12,291 bytes, need a multiple of 3,073: it is cut"):
        cifar10(images)
    batch.write_bytes(bytes([77]) + content[1:])
    with pytest.raises(ConfigError, match=r"has the label 77, need 0 to 9"):
        cifar10(images)
    (text / "wiki.valid.tokens").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text in UTF-8"):
        wikitext2(text)
    (text / "wiki.valid.tokens").write_text("too short")
    with pytest.raises(ConfigError, match="has 3 words, need at least 256"):
        wikitext2(text)


@pytest.mark.usefixtures("small")
def test_a_resumed_run_wants_the_same_files(images: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"workload": "cifar10-resnet18", "data": str(images), "out": str(tmp_path / "runs")}
    settings |= {"steps": 1, "batch_size": 4, "evaluations": 0, "preset": "economy", "optimizer": "sgd"}
    train(TrainConfig.of(settings))
    other = tmp_path / "other"
    (images / "cifar-10-batches-bin").rename(other)
    content = bytearray((other / "test_batch.bin").read_bytes())
    content[-1] ^= 1
    moved = TrainConfig.of({**settings, "steps": 2, "data": str(other)})
    assert len(train(moved, resume=True).steps) == 2
    (other / "test_batch.bin").write_bytes(bytes(content))
    workloads._read.cache_clear()
    with pytest.raises(ConfigError, match="other files than those in"):
        train(TrainConfig.of({**settings, "steps": 3, "data": str(other)}), resume=True)


def test_wrong_device_and_schedule_are_refused() -> None:
    with pytest.raises(ConfigError, match="device 'nowhere' cannot be used"):
        job_of(TrainConfig.of({"device": "nowhere"}))
    with pytest.raises(ConfigError, match='schedule must be "cosine"'):
        TrainConfig.of({"schedule": "linear"})


@pytest.mark.usefixtures("small")
def test_the_command_names_the_workloads_and_takes_the_folder(images: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["list", "workloads", "--json"]).stdout)
    assert "needs --data" in json.dumps(listed)
    arguments = ["--workload", "cifar10-resnet18", "--data", str(images), "--optimizer", "sgd", "--steps", "1"]
    arguments += ["--batch-size", "4", "--preset", "economy", "--set", "evaluations=0", "--out", str(tmp_path / "runs")]
    result = runner.invoke(app, ["train", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert len(Run.open(next((tmp_path / "runs").iterdir())).steps) == 1
    assert isinstance(Run.open(next((tmp_path / "runs").iterdir())).model(1), nn.Module)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "folder", "task"), [("wikitext", "text", "wikitext-2"), ("cifar", "images", "cifar10-resnet18")]
)
def test_the_grids_of_the_founding_experiments_train(
    name: str, folder: str, task: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = Path(__file__).parents[3] / "benchmarks" / "studies" / "founding" / f"{name}.toml"
    settings = {"data": str(request.getfixturevalue(folder)), "out": str(tmp_path / "runs"), "steps": 2, "seeds": 1}
    settings |= {"batch_size": 2, "evaluations": 1, "measures": ["loss"], "curvature_samples": 2}
    grid = read_grid(place, settings)
    configs = resolved_configs(grid)
    assert len(configs) == len(grid.arms)
    (config,) = [one for one in configs if one.arm == "sync"]
    assert config.workload == task
    run = train(config)
    assert run.steps["passes"].tolist() == [2, 2]
    assert run.manifest["data_files"]
