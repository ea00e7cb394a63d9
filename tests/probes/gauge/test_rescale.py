"""A random rescaling of neurons moves raw curvature and nothing that claims to be invariant."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers import gaussian
from lossscope.landscape.training.workloads import built
from lossscope.probes import CrossEntropy, Objective, adaptive_trace, balance, hessian, measure_spectrum, scaled
from lossscope.probes.gauge.rescale import rescaled

LABELS = torch.arange(24) % 3
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (5,)),
    "convolutions": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.LeakyReLU()),
            *(nn.Flatten(), nn.Linear(16, 3)),
        ),
        (1, 6, 6),
    ),
}


def objective(net: nn.Module, shape: tuple[int, ...]) -> Objective:
    x = gaussian(len(LABELS), *shape).to(next(net.parameters()).dtype)
    return Objective(net, CrossEntropy(), [(x[:16], LABELS[:16]), (x[16:], LABELS[16:])])


def top(net: nn.Module, shape: tuple[int, ...]) -> float:
    return float(measure_spectrum(hessian(objective(net, shape)), top=1, rel=1e-7, quantities=("top",)).top.values[0])


def adaptive_top(net: nn.Module, shape: tuple[int, ...]) -> float:
    made = objective(net, shape)
    operator = scaled(hessian(made), made.parameters())
    return float(measure_spectrum(operator, top=1, rel=1e-7, quantities=("top",)).top.values[0])


def trace(net: nn.Module, shape: tuple[int, ...]) -> float:
    return measure_spectrum(hessian(objective(net, shape)), quantities=("trace",), max_products=32).trace.value


PANEL: dict[str, Callable[[nn.Module, tuple[int, ...]], float]] = {
    "adaptive lambda_max": adaptive_top,
    "adaptive trace": lambda net, shape: adaptive_trace(objective(net, shape), max_products=32).value,
    "balanced lambda_max": lambda net, shape: top(balance(net).model, shape),
    "balanced trace": lambda net, shape: trace(balance(net).model, shape),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("measure", PANEL)
def test_the_panel_stays_where_raw_curvature_moves(name: str, measure: str) -> None:
    build, shape = NETWORKS[name]
    net = built(build, 1).double()
    other = rescaled(net, 7)
    assert PANEL[measure](other, shape) / PANEL[measure](net, shape) == pytest.approx(1, abs=1e-6)
    assert abs(math.log(top(other, shape) / top(net, shape))) > math.log(1.5)
    assert abs(math.log(trace(other, shape) / trace(net, shape))) > math.log(1.5)


@pytest.mark.parametrize("measure", PANEL)
def test_the_ratio_in_float32_is_one_in_four_digits(measure: str) -> None:
    build, shape = NETWORKS["dense"]
    net = built(build, 1)
    ratio = PANEL[measure](rescaled(net, 7), shape) / PANEL[measure](net, shape)
    assert ratio == pytest.approx(1, abs=1e-4)


def test_the_factors_are_one_for_each_neuron_log_normal_and_of_the_seed() -> None:
    net = nn.Sequential(nn.Linear(2, 4000, bias=False), nn.ReLU(), nn.Linear(4000, 1)).double()
    found, again, other = (rescaled(net, seed) for seed in (1, 1, 2))
    logs = (found[0].weight / net[0].weight).log().detach()
    torch.testing.assert_close(logs[:, 0], logs[:, 1])
    assert float(logs[:, 0].mean()) == pytest.approx(0, abs=0.08)
    assert float(logs[:, 0].std()) == pytest.approx(1, abs=0.08)
    torch.testing.assert_close((found[2].weight / net[2].weight).log().detach()[0], -logs[:, 0])
    assert torch.equal(found[0].weight, again[0].weight)
    assert not torch.equal(found[0].weight, other[0].weight)


def test_a_network_without_a_known_symmetry_is_copied() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    found = rescaled(net, 0)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), net.parameters(), strict=True))
    assert found is not net
