"""Checkpoints: checksums, modes, names with prefixes, and folders that are gone."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lossscope.landscape.errors import RunError
from lossscope.landscape.recording import checkpoints as checkpoints_module
from lossscope.landscape.recording.checkpoints import (
    checkpoints,
    load_checkpoint,
    load_optimizer,
    load_weights,
    name_prefixes,
    optimizer_state,
    save_checkpoint,
)
from lossscope.landscape.storage.manifest import read_manifest, write_manifest
from lossscope.landscape.storage.run_store import RunStore


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a checkpoint at step 1."""
    path = tmp_path_factory.mktemp("runs") / "a"
    store = RunStore.create(path, {})
    model = network()
    save_checkpoint(path, 1, model, stepped(model))
    store.close("finished", "done")
    return path


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    """Return a copy of the template."""
    return shutil.copytree(template, tmp_path / "a")


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt"])
def test_every_flipped_bit_is_noticed(run: Path, name: str):
    folder = checkpoints(run)[1]
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    load_checkpoint(folder, model, optimizer)
    content = (folder / name).read_bytes()
    chance = random.Random(1)
    for at in chance.sample(range(len(content)), 20):
        flipped = bytearray(content)
        flipped[at] ^= 1 << chance.randrange(8)
        (folder / name).write_bytes(flipped)
        with pytest.raises(RunError, match=rf"{name} was altered: its checksum is [0-9a-f]+, [0-9a-f]+ was written"):
            load_checkpoint(folder, model, optimizer)
        with pytest.raises(RunError, match="was altered"):
            load_weights(folder, model) if name.startswith("weights") else optimizer_state(folder)


def test_files_have_the_mode_that_the_umask_gives(run: Path, tmp_path: Path):
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    files = [one for one in run.rglob("*") if one.is_file()]
    assert len(files) == 5
    assert {one.name: one.stat().st_mode for one in files} == {one.name: usual for one in files}


def test_a_checkpoint_of_another_run_is_an_error(run: Path, tmp_path: Path):
    RunStore.create(tmp_path / "b", {}).close("finished", "done")
    shutil.copytree(run / "checkpoints", tmp_path / "b" / "checkpoints")
    with pytest.raises(RunError, match="it belongs to another run; use another one"):
        load_weights(checkpoints(tmp_path / "b")[1], network())


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"run": 1, "sha256": 2}', b"\xff", None])
def test_checksums_that_cannot_be_read_are_an_error(run: Path, content: bytes | None):
    facts = checkpoints(run)[1] / "checkpoint.json"
    facts.unlink() if content is None else facts.write_bytes(content)
    with pytest.raises(RunError, match=r"(it lacks|its) checkpoint\.json( is corrupted)?; use another one"):
        load_weights(facts.parent, network())


def test_a_run_without_identity_has_checkpoints_without_checksums(run: Path):
    manifest = read_manifest(run)
    del manifest["id"]
    write_manifest(run, manifest)
    folder = checkpoints(run)[1]
    (folder / "checkpoint.json").unlink()
    assert load_weights(folder, network()) is None


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "checkpoint.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_anything_in_place_of_a_file_is_an_error(run: Path, name: str, kind: str):
    path = checkpoints(run)[1] / name
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda one: one.symlink_to(one.name)}[kind](path)
    model = network()
    with pytest.raises(RunError, match=rf"{name}(: Too many levels| is a pipe| is a folder)"):
        load_checkpoint(path.parent, model, torch.optim.AdamW(model.parameters()))


def test_a_removed_run_is_not_made_again(run: Path):
    model = network()
    shutil.rmtree(run)
    with pytest.raises(RunError, match=r"cannot write checkpoint .*: No such file or directory"):
        save_checkpoint(run, 2, model, stepped(model))
    assert not run.exists()


class _FullFile(io.FileIO):
    """A file of a disk that is full after 2 kB."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.tell() + len(data) > 2000:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_full_disk_is_named_as_the_reason(run: Path, monkeypatch: pytest.MonkeyPatch):
    opened = Path.open

    def full(self: Path, mode: str = "r", *rest: object, **others: object) -> object:
        return _FullFile(self, "w") if self.name == "optimizer.pt" else opened(self, mode, *rest, **others)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    model = network()
    with pytest.raises(RunError, match=r"cannot write checkpoint .*: No space left on device; free some space"):
        save_checkpoint(run, 2, model, stepped(model))
    assert list(checkpoints(run)) == [1]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("cannot"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoints_module.torch, "save", failing)
    model = network()
    with pytest.raises((RunError, KeyboardInterrupt), match=r"cannot write checkpoint .*(No space|cannot;)|^$"):
        save_checkpoint(run, 2, model, stepped(model))
    assert [one.name for one in (run / "checkpoints").iterdir()] == ["step-000000001"]


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[no-any-return]


def _named(model: nn.Module) -> nn.Module:
    return nn.ModuleDict({"model": model})


def _both(model: nn.Module) -> nn.Module:
    return nn.DataParallel(_compiled(model))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "_orig_mod.": _compiled,
    "module.": nn.DataParallel,
    "model.": _named,
    "module._orig_mod.": _both,
}


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("recorded", ["wrapped", "plain"])
def test_a_prefix_of_the_names_on_one_side_is_ignored_with_a_word(run: Path, prefix: str, recorded: str):
    saved, model = network(), network()
    wrapped = WRAPPERS[prefix]
    save_checkpoint(run, 2, wrapped(saved) if recorded == "wrapped" else saved, stepped(saved))
    note = load_weights(checkpoints(run)[2], wrapped(model) if recorded == "plain" else model)
    side = "the checkpoint" if recorded == "wrapped" else "the model"
    assert note == f"the names of {side} begin with {prefix!r} and the others do not: the prefix was ignored"
    for name, value in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_tied_weights_below_a_prefix_are_loaded(run: Path):
    def tied() -> nn.ModuleDict:
        model = nn.ModuleDict({"first": nn.Embedding(4, 3), "last": nn.Linear(3, 4, bias=False)})
        model["last"].weight = model["first"].weight
        return model

    saved, model = tied(), tied()
    optimizer = torch.optim.SGD(saved.parameters())
    save_checkpoint(run, 2, nn.DataParallel(saved), optimizer)
    assert "'module.'" in str(load_weights(checkpoints(run)[2], model))
    assert torch.equal(model["last"].weight, saved["first"].weight)


@pytest.mark.parametrize(
    ("saved", "wanted", "prefixes"),
    [
        (["a", "b.c"], ["a", "b.c"], ("", "")),
        (["x.a", "x.b.c"], ["a", "b.c"], ("x.", "")),
        (["a", "b.c"], ["y.z.a", "y.z.b.c"], ("", "y.z.")),
        (["x.a", "b.c"], ["a", "b.c"], ("", "")),
        (["x.a"], ["b"], ("", "")),
        (["x.a"], ["a", "x.a"], ("", "")),
        ([], ["a"], ("", "")),
    ],
)
def test_a_prefix_is_one_that_all_names_of_a_side_have(saved: list[str], wanted: list[str], prefixes: tuple[str, str]):
    assert name_prefixes(saved, wanted) == prefixes


def test_another_network_is_still_refused_with_the_tensor_that_does_not_fit(run: Path):
    with pytest.raises(RunError, match=r"do not fit the model: size mismatch for 0\.weight"):
        load_weights(checkpoints(run)[1], network(5))
    with pytest.raises(RunError, match="is that of another optimizer"):
        load_optimizer(checkpoints(run)[1], torch.optim.AdamW([torch.ones(1, requires_grad=True)]))


def test_the_checksum_file_names_run_and_step(run: Path):
    facts = json.loads((checkpoints(run)[1] / "checkpoint.json").read_text())
    assert facts["run"] == read_manifest(run)["id"]
    assert (facts["step"], set(facts["sha256"])) == (1, {"weights.safetensors", "optimizer.pt"})
