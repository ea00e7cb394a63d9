"""Files of weights from other programs: what is read, what is refused, and what does not fit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.reprobe.weights_file import fit_weights, read_weights, saved_arrays


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def loaded(file: Path, model: nn.Module) -> str:
    return fit_weights(read_weights(file), model, file)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_state_dict_is_found_and_its_prefix_named(wrap: str | None, prefix: str, tmp_path: Path) -> None:
    state = {prefix + name: tensor for name, tensor in net(1).state_dict().items()}
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "a.pt")
    model = net(2)
    note = loaded(tmp_path / "a.pt", model)
    assert same(model, net(1))
    assert note == (
        f"the names of the file begin with {prefix!r} and the others do not: the prefix was ignored" * bool(prefix)
    )


def test_safetensors_are_read_and_tied_weights_may_stand_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    torch.manual_seed(1)
    one = Tied()
    save_model(one, str(tmp_path / "a.safetensors"))
    torch.manual_seed(2)
    other = Tied()
    loaded(tmp_path / "a.safetensors", other)
    assert torch.equal(one.a.weight, other.b.weight)
    save_file(net(1).state_dict(), tmp_path / "b.safetensors")
    model = net(2)
    assert loaded(tmp_path / "b.safetensors", model) == ""
    assert same(model, net(1))


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"model": Bomb()}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="holds more than tensors, and loading it could run code"):
        read_weights(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()
    torch.save(net(), tmp_path / "whole.pt")
    with pytest.raises(ConfigError, match="holds more than tensors"):
        read_weights(tmp_path / "whole.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("2.bias"), r"it lacks 2\.bias"),
        (lambda state: state.update(extra=torch.ones(1)), r"the model has no extra"),
        (
            lambda state: state.update({"2.weigth": state.pop("2.weight")}),
            r"lacks 2\.weight \(the file has 2\.weigth\), ",
        ),
        (lambda state: state.update({"2.bias": torch.ones(5)}), r"2\.bias has the shape \(5,\), the model \(2,\)"),
    ],
)
def test_weights_of_another_network_are_named_and_nothing_is_loaded(change, words: str, tmp_path: Path) -> None:
    state = net(1).state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pt")
    model = net(2)
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path / "a.pt", model)
    assert same(model, net(2))


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(40)])
def test_damaged_files_end_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_no_bytes_are_a_crash(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(b"junk" if seed == 0 else random.Random(seed).randbytes(seed))
    with pytest.raises(ConfigError, match=r"a\.pt "):
        read_weights(file)


def test_sparse_tensors_have_their_zeros(tmp_path: Path) -> None:
    weight = torch.eye(3)
    torch.save({"w": weight.to_sparse(), "b": torch.ones(2)}, tmp_path / "a.pt")
    read = saved_arrays(tmp_path / "a.pt", "a").tensors["w"].read
    assert read is not None
    assert (read() == weight.numpy()).all()


def test_what_is_no_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file of weights at"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"ending in \.pt, "):
        read_weights(tmp_path / "a.txt")
    torch.save({"epoch": 3}, tmp_path / "b.pt")
    with pytest.raises(ConfigError, match=r"holds no weights \(found epoch\)"):
        read_weights(tmp_path / "b.pt")
