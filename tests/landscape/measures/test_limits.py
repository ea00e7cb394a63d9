"""Catalogue entries of limits: rows against dense matrices and closed forms, missing with the reason."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from helpers import gaussian
from lossscope.landscape.measures.catalogue import GROUPS, recorded_groups
from lossscope.landscape.measures.limit_entries import LIMITS
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.measures.symmetry_entries import SYMMETRIES
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.sharpness.gradient_smoothness import gradient_smoothness
from lossscope.probes.sharpness.zeroth_order import zeroth_order_rate


def network() -> Objective:
    x, y = gaussian(48, 4), torch.arange(48) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    return Objective(net, CrossEntropy(), [(x, y)])


def dense(objective: Objective) -> Tensor:
    return gauss_newton(objective) @ torch.eye(objective.size, dtype=torch.float64)


def rows(group: str, target: MeasurementTarget, max_products: int = 30) -> dict[str, dict]:
    panel = Panel(target, SolverOptions(rel=0.01, trace_rel=0.01, max_products=max_products, seed=3))
    found = GROUPS[group].measure(panel, GROUPS[group].names)
    return {row["measure"]: row for row in panel.with_provenance(found, 7).probes}


@pytest.mark.parametrize("max_products", [24, 200])
def test_the_zeroth_order_rate_is_that_of_the_dense_gauss_newton_matrix(max_products: int) -> None:
    objective = network()
    right = zeroth_order_rate(torch.linalg.eigvalsh(dense(objective)).clamp(min=0).tolist())
    row = rows("zeroth_order", MeasurementTarget(objective), max_products)["zeroth_order_rate"]
    assert row["low"] <= right <= row["high"]
    assert row["high"] - row["low"] < 0.2 * right
    assert row["products"] <= max_products


def test_without_a_gauss_newton_matrix_the_rate_is_missing_with_the_reason() -> None:
    net = nn.Linear(4, 1)
    target = MeasurementTarget(Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(3, 4)]))
    with pytest.raises(ProbeError, match="outputs"):
        rows("zeroth_order", target)


def test_each_smoothness_is_that_of_its_probe_and_one_that_is_missing_leaves_the_other() -> None:
    objective = network()
    found = rows("smoothness", MeasurementTarget(objective))
    for name, model in (("gradient_smoothness", "hessian"), ("gradient_smoothness_gauss_newton", "gauss_newton")):
        right = gradient_smoothness(objective, model=model, seed=3).radius
        assert (found[name]["value"], found[name]["high"]) == (right.value, right.value)
        assert math.isnan(found[name]["low"])
    cubic = Objective(nn.Linear(4, 1), lambda model, x: model(x).pow(3).mean(), [torch.ones(3, 4)])
    panel = Panel(MeasurementTarget(cubic), SolverOptions(rel=0.01, trace_rel=0.01, max_products=9))
    there = GROUPS["smoothness"].measure(panel, GROUPS["smoothness"].names)
    assert [row["measure"] for row in there.probes] == ["gradient_smoothness"]
    assert "outputs(model, batch)" in panel.failed["gradient_smoothness_gauss_newton"]


def test_the_imbalance_of_charges_is_that_of_the_weights_and_a_network_without_any_has_a_reason() -> None:
    objective = network()
    first, second = objective.model[0], objective.model[2]
    inner = first.weight.square().sum(1) + first.bias.square()
    outer = second.weight.square().sum(0)
    right = float(((inner - outer).abs().sum() / (inner + outer).sum()).detach())
    row = rows("charges", MeasurementTarget(objective))["charge_imbalance"]
    assert row["value"] == pytest.approx(right, rel=1e-12)
    smooth = Objective(nn.Linear(4, 3), CrossEntropy(), objective.data.batches)
    with pytest.raises(ProbeError, match="no neuron of this network can be rescaled"):
        rows("charges", MeasurementTarget(smooth))


@pytest.mark.parametrize("group", [*LIMITS, SYMMETRIES[0]], ids=lambda group: group.name)
def test_they_are_taken_by_name_only_and_say_what_they_cost(group) -> None:
    assert group not in [one for _, one in recorded_groups()]
    assert not group.usual
    assert group.cost_in_words
