"""Checkpoints that paths name: which files and folders are found, with which steps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.unrecorded.sources import find_checkpoints


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def steps(*paths: Path) -> list[int]:
    return [one.step for one in find_checkpoints(paths).checkpoints]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500/model.safetensors", 500),
        ("checkpoint-500/pytorch_model.bin", 500),
        ("step_500.pt", 500),
        ("model-step500.safetensors", 500),
        ("epoch=3-step=900.ckpt", 900),
        ("epoch=3-step=900-v1.ckpt", 900),
        ("global_step7/model.safetensors", 7),
        ("ckpt_0012.pth", 12),
        ("iter-3.pt", 3),
        ("1000.pt", 1000),
        ("step-000000020/weights.safetensors", 20),
    ],
)
def test_a_step_is_read_from_the_name(name: str, step: int, tmp_path: Path) -> None:
    touch(tmp_path, name)
    assert steps(tmp_path / name) == [step]
    assert steps(tmp_path) == [step]
    if "/" in name:
        assert steps((tmp_path / name).parent) == [step]


@pytest.mark.parametrize("name", ["resnet18.pt", "step_5k.pt", "footstep_5.pt", "qwen3-0.6b.safetensors", "model_2.pt"])
def test_a_single_checkpoint_without_a_step_is_of_step_0_and_says_so(name: str, tmp_path: Path) -> None:
    found = find_checkpoints([touch(tmp_path, name) / name])
    assert [one.step for one in found.checkpoints] == [0]
    assert "has no step, so its rows are of step 0" in found.notes[0]


def test_several_without_steps_need_them_and_an_epoch_is_none(tmp_path: Path) -> None:
    touch(tmp_path, "epoch=3.ckpt", "epoch=10.ckpt")
    with pytest.raises(ConfigError, match=r"has no step, only an epoch: give the steps of all"):
        find_checkpoints([tmp_path])
    found = find_checkpoints([tmp_path], [30, 100]).checkpoints
    assert [(one.path.name, one.step) for one in found] == [("epoch=3.ckpt", 30), ("epoch=10.ckpt", 100)]
    with pytest.raises(
        ConfigError, match=r"--steps names 3, but 2 checkpoints were found: epoch=3.ckpt, epoch=10.ckpt"
    ):
        find_checkpoints([tmp_path], [1, 2, 3])


def test_the_folder_of_a_trainer_has_its_checkpoints_in_order_and_leaves_the_rest_out(tmp_path: Path) -> None:
    names = [f"checkpoint-{step}/{file}" for step in (1000, 500, 20) for file in ("model.safetensors", "optimizer.pt")]
    touch(tmp_path, *names, "model.safetensors", "training_args.bin", "last.ckpt", "notes.txt", ".hidden.pt")
    found = find_checkpoints([tmp_path])
    assert [one.step for one in found.checkpoints] == [20, 500, 1000]
    assert found.checkpoints[0].files == (tmp_path / "checkpoint-20" / "model.safetensors",)
    assert found.notes == ("left out last.ckpt, model.safetensors: no step in the name",)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_shards_are_those_of_the_index(index: str, tmp_path: Path) -> None:
    stem, ending = index.split(".")[:2]
    shards = [f"{stem}-0000{n}-of-00002.{ending}" for n in (1, 2)]
    folder = touch(tmp_path / "checkpoint-5", *shards)
    (folder / index).write_text(json.dumps({"weight_map": {"a": shards[1], "b": shards[0], "c": shards[1]}}))
    for path in (folder, folder / index, tmp_path):
        (found,) = find_checkpoints([path]).checkpoints
        assert found.step == 5
        assert [file.name for file in found.files] == shards
    with pytest.raises(ConfigError, match="is one shard of several: name its folder"):
        find_checkpoints([folder / shards[0]])
    before = find_checkpoints([folder]).checkpoints[0].checksum()
    (folder / shards[1]).write_bytes(b"changed")
    assert find_checkpoints([folder]).checkpoints[0].checksum() != before
    (folder / shards[1]).unlink()
    with pytest.raises(ConfigError, match=r"names the shard .*00002-of-00002.* no such file beside it"):
        find_checkpoints([folder])
    for words in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../x"}}', '{"weight_map": {}}'):
        (folder / index).write_text(words)
        with pytest.raises(ConfigError, match=r"is no index of shards|names the shard|names no shard"):
            find_checkpoints([folder])


def test_a_recorded_run_is_its_checkpoints(tmp_path: Path) -> None:
    touch(tmp_path, "run.json", "steps.parquet", *(f"checkpoints/step-00000000{n}/weights.safetensors" for n in (0, 7)))
    assert steps(tmp_path) == [0, 7]


def test_two_files_of_one_step_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/step_5.pt", "b/step_5.pt")
    with pytest.raises(ConfigError, match=r"a/step_5.pt and .*b/step_5.pt are both of step 5"):
        find_checkpoints([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ConfigError, match=r"are both of step 3"):
        find_checkpoints([tmp_path / "a", tmp_path / "b"], [3, 3])


def test_what_holds_no_checkpoint_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "empty/notes.txt", "adapter/adapter_model.safetensors", "only/optimizer.pt")
    for path, words in {
        "empty": "holds no checkpoint: looked for files ending in .pt",
        "only": "holds no checkpoint",
        "adapter": "holds the weights of an adapter alone: merge them",
        "absent": "there is no file or folder",
        "empty/notes.txt": "is no file of weights",
        "only/optimizer.pt": "is no file of weights",
    }.items():
        with pytest.raises(ConfigError, match=words):
            find_checkpoints([tmp_path / path])
    with pytest.raises(ConfigError, match="no checkpoint is given"):
        find_checkpoints([])
