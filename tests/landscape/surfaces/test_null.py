"""Barriers that chance alone makes: copies with permuted neurons, of the same function, and runs of other seeds."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape import Run
from lossscope.landscape.surfaces.null import is_one_function, permuted, sibling
from lossscope.landscape.surfaces.path import path
from lossscope.landscape.surfaces.several import nulls_of, plane_of, seed_pairs
from lossscope.landscape.surfaces.targets import targets
from lossscope.probes import CrossEntropy, Objective, ProbeError


def trained(layers: nn.Module, steps: int = 150) -> Objective:
    torch.manual_seed(0)
    for p in layers.parameters():
        nn.init.normal_(p, std=0.4)
    x = torch.randn(60, 4)
    y = x[:, :3].argmax(1)
    optimizer = torch.optim.Adam([p for p in layers.parameters() if p.requires_grad], 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(layers(x), y).backward()
        optimizer.step()
    return Objective(layers, CrossEntropy(), [(x, y)])


def network(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), activation, nn.Linear(16, 3))


def outputs(objective: Objective, vector: Tensor) -> Tensor:
    other = copy.deepcopy(objective.model)
    nn.utils.vector_to_parameters(vector, [p for p in other.parameters() if p.requires_grad])
    return other(objective.data.batches[0][0]).detach()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_a_copy_with_permuted_neurons_is_one_function_behind_a_barrier(activation: nn.Module) -> None:
    objective = trained(network(activation))
    before = objective.parameters()
    other = permuted(objective, 3)
    assert torch.equal(objective.parameters(), before)
    assert sorted(other.tolist()) == sorted(before.tolist())
    assert not torch.equal(other, before)
    assert torch.allclose(outputs(objective, other), outputs(objective, before), atol=1e-4)
    found = path(objective, before, other)
    assert is_one_function(found)
    assert found.barrier > 5 * found.losses[0]
    assert found.barrier > 2 * found.barrier_error


def test_layers_inside_a_sequence_inside_a_network_are_permuted() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.inner = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, None]
            return self.inner(x + self.attention(x, x, x, need_weights=False)[0])[:, 0]

    objective = trained(nn.Sequential(Block(), nn.Linear(4, 3)), steps=1)
    other = permuted(objective, 0)
    assert not torch.equal(other, objective.parameters())
    assert is_one_function(path(objective, objective.parameters(), other, points=3))


def test_a_network_without_known_layers_has_no_permuted_copy() -> None:
    with pytest.raises(ProbeError, match="no hidden layer is known whose neurons can be permuted"):
        permuted(trained(nn.Linear(4, 3), steps=1), 0)


def test_a_copy_that_is_another_function_is_not_taken_for_one() -> None:
    layers = network(nn.Tanh())
    layers[0].weight.requires_grad_(False)  # the copy moves what the loss does not depend on
    objective = trained(layers)
    found = path(objective, objective.parameters(), permuted(objective, 0), points=3)
    assert not is_one_function(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of trained runs: two seeds of an arm, one of another, and a folder that is no run."""
    from lossscope.landscape import TrainConfig, train

    place = tmp_path_factory.mktemp("seeds")
    for optimizer, seed in (("adamw", 0), ("adamw", 1), ("sgd", 0)):
        settings = {"workload": "digits-mlp", "optimizer": optimizer, "steps": 3, "evaluations": 0, "out": str(place)}
        train(TrainConfig.of({**settings, "seed": seed, "name": f"{optimizer}-s{seed}"}))
    (place / "other").mkdir()
    (place / "other" / "run.json").write_text("{")
    return place


def test_a_run_of_another_seed_is_found_beside_it(folder: Path) -> None:
    found = sibling(Run.open(folder / "adamw-s0"))
    assert found is not None
    assert found.name == "adamw-s1"
    assert sibling(Run.open(folder / "sgd-s0")) is None


def test_without_checkpoints_there_is_no_sibling(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "adamw-s1" / "checkpoints")
    assert sibling(Run.open(tmp_path / "runs" / "adamw-s0")) is None


def test_nulls_are_paths_with_what_could_not_be_had(folder: Path) -> None:
    found = targets([str(folder / "adamw-s0"), str(folder / "sgd-s0")], None, None)
    pairs = seed_pairs(found)
    assert {arm: [one.name for one in pair] for arm, pair in pairs.beside.items()} == {
        "adamw": ["adamw-s0 at step 3", "adamw-s1 at step 3"]
    }
    counted: list[int] = []
    nulls = nulls_of(found, pairs, points=3, seed=0, progress=counted.append)
    assert list(nulls.paths) == [
        "adamw-s0 at step 3 to a copy of it with permuted neurons",
        "adamw-s0 at step 3 to adamw-s1 at step 3, two seeds of adamw",
    ]
    assert sum(counted) == 6
    assert nulls.missing == {"two seeds of sgd": "no run beside sgd-s0 differs from it in its seeds alone"}
    assert any("were initialized with seed 0" in note for note in nulls.notes)


def test_two_seeds_that_were_named_are_known_as_such(folder: Path) -> None:
    found = targets([str(folder / "adamw-s0"), str(folder / "adamw-s1")], None, None)
    pairs = seed_pairs(found)
    assert pairs.given == {"adamw-s0 at step 3 to adamw-s1 at step 3": "adamw"}
    assert not pairs.beside


@pytest.mark.parametrize("kind", ["random", "eigen"])
def test_the_model_is_left_at_the_point_in_the_middle_of_a_plane(folder: Path, kind: str) -> None:
    found = targets([str(folder / "adamw-s0")], None, 0)
    plane, _ = plane_of(found, kind, radius=0.1, points=3, planes=2, seed=0, progress=lambda count: None)
    assert [len(one.marks) for one in plane.trails] == [4] * len(plane.losses)
    assert found.objective.value() == plane.loss == plane.trails[0].marks[0].loss
