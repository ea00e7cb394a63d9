"""Charges of symmetries: conserved by gradient flow, broken by Adam, balanced points, refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.balance import balance
from lossscope.probes.gauge.charges import symmetry_charges

X, Y = gaussian(40, 4), torch.arange(40) % 3


def made(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return build().double()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "linear": lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)),
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.zero_grad()
    F.cross_entropy(net(X), Y).backward()
    optimizer.step()
    return before, {name: p.detach() - before[name] for name, p in net.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_descent_conserves_the_charges_to_second_order_and_adam_does_not(name: str) -> None:
    drifts = []
    for lr in (1e-2, 1e-3):
        net = made(NETWORKS[name])
        first = symmetry_charges(net).by_layer
        before, moved = step(net, torch.optim.SGD(net.parameters(), lr=lr))
        found = symmetry_charges(net, before=before, displacement=moved)
        assert found.breaking < 1e-12
        after = symmetry_charges(net).by_layer
        assert list(found.by_layer) == list(first)
        change = sum(float((after[layer] - first[layer]).abs().sum()) for layer in first)
        size = sum(float(charge.abs().sum()) for charge in first.values()) / found.imbalance
        assert found.drift == pytest.approx(change / size, rel=1e-6)
        drifts.append(found.drift)
    assert drifts[0] == pytest.approx(100 * drifts[1], rel=1e-3)  # in the square of the learning rate
    net = made(NETWORKS[name])
    before, moved = step(net, torch.optim.Adam(net.parameters(), lr=1e-3))
    assert symmetry_charges(net, before=before, displacement=moved).breaking > 0.01


def test_the_balanced_point_has_no_charge_and_a_rescaled_one_the_charge_of_its_norms() -> None:
    net = made(NETWORKS["relu"])
    assert symmetry_charges(balance(net).model).imbalance < 1e-10
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight *= 3
        other[0].bias *= 3
        other[2].weight /= 3
    first, second = symmetry_charges(net).by_layer, symmetry_charges(other).by_layer
    inner = other[0].weight.square().sum(1) + other[0].bias.square() - other[2].weight.square().sum(0)
    torch.testing.assert_close(second["0"], inner.detach())
    assert not torch.allclose(first["0"], second["0"])


def test_a_neuron_with_a_frozen_weight_has_no_charge_and_without_any_there_is_a_reason() -> None:
    net = made(NETWORKS["relu"])
    net[0].bias.requires_grad_(False)
    found = symmetry_charges(net)
    assert list(found.by_layer) == ["2"]
    assert found.unknown == ()
    assert math.isnan(found.breaking)
    assert math.isnan(found.drift)
    with pytest.raises(ProbeError, match="no neuron of this network can be rescaled"):
        symmetry_charges(made(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))))
    with pytest.raises(ProbeError, match="displacement must have every weight of the symmetries"):
        symmetry_charges(net, displacement={name: p for name, p in net.named_parameters() if name != "2.weight"})
