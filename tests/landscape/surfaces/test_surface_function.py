"""`surface(...)`: the numbers of the command, restored weights, and wrong input."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape import surface
from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.fan import fan
from lossscope.landscape.surfaces.plane import eigen_plane, random_planes
from lossscope.probes import CrossEntropy, Objective


def network(seed: int = 0, *, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(5)] if norm else []
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 3))


def loss_of(net: nn.Module) -> Objective:
    torch.manual_seed(9)
    return Objective(net, CrossEntropy(), [(torch.randn(12, 4), torch.arange(12) % 3)])


def states(*seeds: int, norm: bool = False) -> dict[str, OrderedDict[str, Tensor]]:
    found = {}
    for seed in seeds:
        net = network(seed, norm=norm)
        if norm:
            net(torch.randn(30, 4))  # other statistics
        found[f"seed {seed}"] = net.state_dict()
    return found


def test_pictures_around_the_model_are_those_of_the_functions_of_each_kind() -> None:
    objective = loss_of(network())
    small: Any = {"points": 5, "seed": 3}
    assert (
        surface(objective, draws=8, radius=0.2, **small).losses == fan(objective, draws=8, radius=0.2, **small).losses
    ).all()
    assert (
        surface(objective, "random", draws=2, **small).losses == random_planes(objective, planes=2, **small).losses
    ).all()
    found = surface(objective, "eigen", radius=0.5, **small)
    assert found.losses == pytest.approx(eigen_plane(objective, radius=0.5, **small).losses, rel=1e-5)
    assert found.losses[0, 2, 2] == objective.value()


def test_pictures_between_states_have_their_losses_with_their_buffers_and_restore_the_model() -> None:
    net = network(norm=True).eval()
    objective = loss_of(net)
    before = {name: one.clone() for name, one in net.state_dict().items()}
    pointers = [one.data_ptr() for one in net.state_dict().values()]
    others = states(1, 2, 3, norm=True)
    truth = {name: loss_of(fitted(state)).value() for name, state in others.items()}
    line = surface(objective, "path", states={"seed 1": others["seed 1"]}, points=3)
    assert line.losses[0] == objective.value()  # with the statistics of the model
    assert line.distance == pytest.approx(distance(net.state_dict(), others["seed 1"]))
    two = {name: others[name] for name in ("seed 1", "seed 2")}
    plane = surface(objective, "points", states=two, points=5)
    assert [one.name for one in plane.marks] == ["the model", "seed 1", "seed 2"]
    assert [one.loss for one in plane.marks[1:]] == [truth["seed 1"], truth["seed 2"]]
    assert plane.loss == objective.value()
    found = surface(objective, "pca", states=others, points=3)
    assert [one.name for one in found.marks] == [*others, "the model"]
    assert (found.marks[-1].x, found.marks[-1].y, found.loss) == (0.0, 0.0, objective.value())
    assert found.explained is not None
    assert found.walk is not None
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert [one.data_ptr() for one in net.state_dict().values()] == pointers


def fitted(state: Any) -> nn.Module:
    net = network(norm=True).eval()
    net.load_state_dict(state)
    return net


def distance(first: Any, second: Any) -> float:
    names = [name for name, _ in network(norm=True).named_parameters()]
    return float(np.sqrt(sum(float((first[name] - second[name]).square().sum()) for name in names)))


def test_the_model_is_restored_after_an_exception() -> None:
    net = network()
    objective = loss_of(net)
    before = {name: one.clone() for name, one in net.state_dict().items()}

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    for plane, seeds in (("path", (1,)), ("points", (1, 2))):
        with pytest.raises(KeyboardInterrupt):
            surface(objective, plane, states=states(*seeds), points=3, progress=stop)
        assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())


@pytest.mark.parametrize(
    ("plane", "given", "words"),
    [
        ("sphere", {}, "plane must be one of fan, path, random, eigen, points, pca, got 'sphere'"),
        ("fan", {"states": states(1)}, "plane 'fan' needs no states beside the model, got 1"),
        ("path", {}, "plane 'path' needs 1 state beside the model, got 0"),
        ("points", {"states": states(1)}, "plane 'points' needs 2 states beside the model, got 1"),
        ("pca", {"states": states(1)}, "plane 'pca' needs at least 2 states beside the model, got 1"),
        ("eigen", {"draws": 3}, "plane 'eigen' has no draws"),
        ("points", {"states": states(1, 2), "radius": 1.0}, "plane 'points' has no radius"),
        ("path", {"states": {"wide": nn.Linear(2, 2).state_dict()}}, "the weights of wide do not fit the model"),
        ("path", {"states": states(0)}, "both ends of the path are the same"),
    ],
)
def test_wrong_input_is_one_clear_line(plane: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        surface(loss_of(network()), plane, **given)
