"""Flatness of the panel: right numbers, one space for two of them, reasons for what is missing, and the guard."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from helpers import gaussian
from lossscope.landscape.measures import flatness
from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.landscape.measures.guard import ratio
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.storage.row_codec import cells
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

OPTIONS = SolverOptions(0.01, 0.02, 60)


def relu_net(*hidden: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *hidden, nn.Linear(8, 3)).double()


def panel(model: nn.Module, options: SolverOptions = OPTIONS) -> Panel:
    data = [(gaussian(20, 4), torch.arange(20) % 3), (gaussian(11, 4, seed=1), torch.arange(11) % 3)]
    return Panel(MeasurementTarget(Objective(model, CrossEntropy(), data)), options)


def measured(group: str, at: Panel, *names: str) -> dict[str, dict[str, object]]:
    rows = at.with_provenance(GROUPS[group].measure(at, names or GROUPS[group].names), 1)
    for table, row in rows.by_table():
        cells(table, row)  # raises where a row does not fit its table
    return {row["measure"]: row for row in rows.probes}


def dense(objective: Objective) -> torch.Tensor:
    return hessian(objective) @ torch.eye(objective.size, dtype=objective.dtype)


def test_both_adaptive_numbers_come_from_one_space_and_are_right() -> None:
    at = panel(relu_net())
    theta = at.objective.parameters()
    values = torch.linalg.eigvalsh(theta[:, None] * dense(at.objective) * theta)
    both = measured("adaptive", at)
    assert both["adaptive_lambda_max"]["low"] <= float(values[-1]) <= both["adaptive_lambda_max"]["high"]
    assert both["adaptive_trace"]["low"] <= float(values.sum()) <= both["adaptive_trace"]["high"]
    assert both["adaptive_trace"]["products"] == both["adaptive_lambda_max"]["products"]
    assert {row["gauge"] for row in both.values()} == {"raw"}
    alone = [measured("adaptive", panel(relu_net()), name)[name]["products"] for name in both]
    assert both["adaptive_trace"]["products"] < sum(alone)


def test_both_balanced_numbers_are_those_of_the_balanced_network() -> None:
    from lossscope.probes.gauge.balance import balance

    model = relu_net()
    with torch.no_grad():
        model[0].weight *= 3
    at = panel(model)
    values = torch.linalg.eigvalsh(dense(at.objective.with_model(balance(model).model)))
    both = measured("balanced", at)
    assert both["balanced_lambda_max"]["low"] <= float(values[-1]) <= both["balanced_lambda_max"]["high"]
    assert both["balanced_trace"]["low"] <= float(values.sum()) <= both["balanced_trace"]["high"]
    assert {row["gauge"] for row in both.values()} == {"balanced"}
    raw = float(torch.linalg.eigvalsh(dense(at.objective))[-1])
    assert abs(math.log(float(values[-1]) / raw)) > 0.1


class Gated(nn.Module):
    """A layer with a gate, of which no trace shows the symmetry."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * torch.sigmoid(x)


def test_where_no_balanced_point_is_known_the_rows_are_missing_with_the_reason() -> None:
    at = panel(relu_net(Gated()).double())
    assert measured("balanced", at) == {}
    assert set(at.failed) == {"balanced_lambda_max", "balanced_trace"}
    assert all("no balanced point is known for this network: " in why for why in at.failed.values())


def test_outputs_that_differ_are_refused() -> None:
    model, other = relu_net(), relu_net()
    with torch.no_grad():
        other[2].weight *= 1 + 1e-4
    with pytest.raises(ProbeError, match=r"outputs differ at the balanced point by .* measure in float64"):
        flatness.same_function(panel(model).objective, other, "at the balanced point")
    squares = Objective(model, lambda net, x: net(x).square().mean(), [gaussian(5, 4)])
    with pytest.raises(ProbeError, match="loss differs after"):
        flatness.same_function(squares, other, "after a rescaling")
    assert flatness.same_function(squares, relu_net(), "anywhere").value() == squares.value()


def test_the_guard_shows_that_the_panel_stays_and_raw_curvature_moves() -> None:
    found = measured("guard", panel(relu_net(), SolverOptions(0.01, 0.02, 60, seed=1)))
    moved = found.pop("guard_lambda_max")
    assert not moved["low"] <= 1 <= moved["high"]
    assert len(found) == 4
    for name, row in found.items():
        assert row["value"] == pytest.approx(1, abs=1e-4), name
        assert row["low"] <= 1 <= row["high"]
        assert row["gauge"] == ("balanced" if "balanced" in name else "raw")
    (one,) = measured("guard", panel(relu_net()), "guard_adaptive_trace").values()
    assert one["products"] < moved["products"]


def test_the_guard_says_what_it_cannot_compare() -> None:
    smooth = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with pytest.raises(ProbeError, match="no rescaling of neurons is known"):
        measured("guard", panel(smooth))


def test_a_ratio_lies_between_those_of_the_opposite_ends() -> None:
    above, below = (Estimate(one, math.nan, one - 1, one + 1, 0, "residual") for one in (6.0, 3.0))
    found = ratio(above, below)
    assert (found.value, found.low, found.high) == (2.0, 5 / 4, 7 / 2)
    unsure = ratio(above, Estimate(0.5, math.nan, -1.0, 2.0, 0, "residual", converged=False, cause="coarse"))
    assert (unsure.low, unsure.high) == (-math.inf, math.inf)
    assert (unsure.converged, unsure.cause) == (False, "coarse")
    assert math.isnan(ratio(above, exact_estimate(0.0)).value)


def test_radius_and_curve_come_from_the_same_draws_and_state_one_cost() -> None:
    at = panel(relu_net())
    rows = at.with_provenance(GROUPS["basin"].measure(at, ["sigma_star", "noise_rise"]), 1)
    (radius,), (curve,) = rows.probes, rows.curves
    assert (radius["measure"], curve["measure"]) == ("sigma_star", "noise_rise")
    assert radius["low"] < radius["value"] < radius["high"]
    assert (radius["samples"], radius["seconds"]) == (curve["samples"], curve["seconds"])
    inside = [y for x, y in zip(curve["x"], curve["y"], strict=True) if x < radius["value"]]
    assert all(y < flatness.RISE for y in inside)
    assert len(inside) < len(curve["x"])
    assert {"sigma_star"} == {row["measure"] for row in GROUPS["basin"].measure(at, ["sigma_star"]).probes}


def test_a_curve_is_kept_where_there_is_no_radius() -> None:
    model = relu_net()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    at = panel(model)
    rows = GROUPS["basin"].measure(at, ["sigma_star", "noise_rise"])
    assert (len(rows.curves), rows.probes) == (1, [])
    assert "no radius up to 10" in at.failed["sigma_star"]
    with pytest.raises(ProbeError, match="no radius up to 10"):
        GROUPS["basin"].measure(at, ["sigma_star"])
