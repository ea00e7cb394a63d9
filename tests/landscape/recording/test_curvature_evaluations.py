"""Curvature evaluations: the measures of long and short ones, against those of the dense Hessian."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossscope.landscape.measures import step_measures
from lossscope.landscape.measures.catalogue import GROUPS, recorded_groups
from lossscope.landscape.measures.estimate_rows import Rows
from lossscope.landscape.measures.optimizer_metric import step_metric
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.recording.cadence import PRESETS, Cadence
from lossscope.landscape.recording.curvature_evaluations import CurvatureEvaluations, wanted_measures
from lossscope.optimizer import create
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.critical import critical_learning_rate
from lossscope.probes.sharpness.ghost_radius import softmax_ghost_radius

ECONOMY, FULL = PRESETS["economy"], PRESETS["full"]


def problem(optimizer="adamw", steps=3):
    """A small trained network in float64 with its optimizer, objective, dense Hessian and last step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        x, y = torch.randn(40, 5, dtype=torch.float64), torch.randint(0, 3, (40,))
    made = torch.optim.SGD(model.parameters(), lr=0.2) if optimizer == "sgd" else create(optimizer, model, lr=0.05)
    before = {}
    for _ in range(steps):
        made.zero_grad()
        F.cross_entropy(model(x), y).backward()
        before = {p: p.detach().clone() for p in model.parameters()}
        made.step()
    moved = {p: p.detach() - old for p, old in before.items()}
    return model, made, Objective(model, CrossEntropy(), [(x, y)]), before, moved


def dense(objective):
    operator = Panel(MeasurementTarget(objective), SolverOptions(0.1, 0.1, 8)).hessian
    return operator @ torch.eye(operator.size, dtype=torch.float64)


def values(rows: Rows) -> dict[str, float]:
    return {row["measure"]: row["value"] for row in rows.probes}


def test_a_long_evaluation_writes_every_measure_that_is_recorded_and_none_that_the_list_does_not_know():
    preset = replace(FULL, products=16)
    _, adamw, objective, before, moved = problem()
    both = {"train": objective, "test": objective}
    found = values(CurvatureEvaluations(objective, preset, adamw, **both).rows(3, before, moved))
    _, sgd, objective, before, moved = problem("sgd")
    found |= values(CurvatureEvaluations(objective, preset, sgd).rows(3, before, moved))
    recorded = {name for _, group in recorded_groups() for name in group.names} - {"density", "noise_rise"}
    assert set(found) == recorded - {*GROUPS["ghost"].names, *GROUPS["symmetry_step"].names}  # where they are named


def test_the_breaking_of_symmetries_is_recorded_where_it_is_named():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        x, y = torch.randn(40, 5, dtype=torch.float64), torch.randint(0, 3, (40,))
    objective, found = Objective(model, CrossEntropy(), [(x, y)]), {}
    for kind in (torch.optim.SGD, torch.optim.Adam):
        used = kind(model.parameters(), lr=1e-2)
        used.zero_grad()
        F.cross_entropy(model(x), y).backward()
        before = {p: p.detach().clone() for p in model.parameters()}
        used.step()
        moved = {p: p.detach() - old for p, old in before.items()}
        named = CurvatureEvaluations(objective, ECONOMY, used, wanted=wanted_measures(["symmetry_step"]))
        found[kind.__name__] = values(named.rows(1, before, moved))
    assert set(found["SGD"]) == {"loss", "symmetry_breaking", "charge_drift"}
    assert found["SGD"]["symmetry_breaking"] < 1e-12
    assert found["Adam"]["symmetry_breaking"] > 0.01
    assert 0 < found["SGD"]["charge_drift"] < found["Adam"]["charge_drift"]


def test_the_ghost_radius_is_recorded_where_it_is_named():
    _, adamw, objective, before, moved = problem()
    named = CurvatureEvaluations(objective, ECONOMY, adamw, wanted=wanted_measures(["ghost"]))
    assert set(values(named.rows(0, {}, {}))) == {"loss"}
    for long in (False, True):
        found = {
            row["measure"]: row for row in named.rows(3, before, moved, long=long).probes if row["measure"] != "loss"
        }
        D = torch.cat([moved[p].reshape(-1) for p in moved])
        at = torch.cat([before[p].reshape(-1) for p in before])
        right = softmax_ghost_radius(objective, D, at=at)
        numbers = [right.ratio, right.ratio_99, right.ratio_90, right.runner_up, right.nonlinearity]
        assert [row["value"] for row in found.values()] == [one.value for one in numbers]
        assert list(found) == list(GROUPS["ghost"].names)


@pytest.mark.parametrize("preset", [ECONOMY, FULL])
def test_the_numbers_of_an_evaluation_are_those_of_the_dense_hessian(preset):
    _, adamw, objective, before, moved = problem()
    rows = CurvatureEvaluations(objective, replace(preset, products=80), adamw).rows(3, before, moved)
    H, found = dense(objective), values(rows)
    theta = torch.linalg.eigvalsh(H)
    assert found["lambda_max"] == pytest.approx(float(theta[-1]), rel=preset.rel)
    assert found["lambda_min"] == pytest.approx(float(theta[0]), abs=preset.rel * float(theta.abs().max()))
    for row in rows.probes:
        if row["measure"] in ("trace", "frobenius"):
            true = float(H.trace()) if row["measure"] == "trace" else float(torch.linalg.matrix_norm(H))
            assert abs(row["value"] - true) <= 4 * row["stderr"] + 1e-9
    metric = step_metric(adamw, dict(objective.model.named_parameters()), objective)
    P = metric.diagonal.rsqrt()
    top = float(torch.linalg.eigvalsh(P[:, None] * H * P)[-1])
    assert found["preconditioned_sharpness"] == pytest.approx(top, rel=preset.rel)
    assert found["preconditioned_edge_ratio"] == pytest.approx(top / metric.threshold, rel=preset.rel)
    w = objective.parameters()
    assert found["theta_hessian_theta"] == pytest.approx(float(w @ H @ w))


def test_the_loss_along_the_step_is_held_against_its_slope_and_curvature():
    _, adamw, objective, before, moved = problem()
    found = values(CurvatureEvaluations(objective, replace(FULL, products=16), adamw).rows(3, before, moved))
    after, D = objective.value(), torch.cat([one.flatten() for one in moved.values()])
    g_after = objective.gradient()
    with objective.at(objective.parameters() - D):
        H, change, g = dense(objective), after - objective.value(), objective.gradient()
    slope, bent, y = float(g @ D), float(D @ H @ D), g_after - g
    R1, R2 = change - slope, change - slope - bent / 2
    assert found["loss_change"] == pytest.approx(change)
    assert found["first_remainder"] == pytest.approx(R1)
    assert found["second_remainder"] == pytest.approx(R2, abs=1e-12)
    assert found["relative_first"] == pytest.approx(abs(R1 / slope))
    assert found["relative_second"] == pytest.approx(abs(R2) / (abs(slope) + abs(bent) / 2))
    assert found["trust_ratio"] == pytest.approx(change / (slope + bent / 2))
    assert found["secant_curvature"] == pytest.approx(float(D @ y / (D @ D)))
    assert found["secant_norm"] == pytest.approx(float(y.norm() / D.norm()))
    assert found["secant_alignment"] == pytest.approx(float(D @ y / D.norm() / y.norm()))


def test_what_is_below_the_rounding_of_a_loss_has_ends_on_both_sides_of_zero():
    _, adamw, objective, before, moved = problem()
    tiny = {p: 1e-12 * one for p, one in moved.items()}
    rows = CurvatureEvaluations(objective, replace(FULL, products=16), adamw).rows(3, before, tiny).probes
    ends = {row["measure"]: (row["low"], row["high"]) for row in rows}
    for measure in ("first_remainder", "second_remainder"):
        assert ends[measure][0] < 0 < ends[measure][1]


@pytest.mark.parametrize("preset", [ECONOMY, FULL])
def test_the_gradient_stands_in_the_eigenvectors_of_the_dense_hessian(preset):
    _, adamw, objective, before, moved = problem()
    found = values(
        CurvatureEvaluations(objective, replace(preset, products=83, rel=1e-4), adamw).rows(3, before, moved)
    )
    theta, V = torch.linalg.eigh(dense(objective))
    g = objective.gradient()
    parts = (V.T @ g).flip(0).square() / (g @ g)
    assert found["top_share"] == pytest.approx(float(parts[0]), rel=1e-3)
    assert ("top5_share" in found) == (preset is FULL)
    if preset is FULL:
        assert found["top5_share"] == pytest.approx(float(parts[:5].sum()), rel=1e-3)
    rows = CurvatureEvaluations(objective, replace(preset, products=83), adamw).rows(3, before, moved).probes
    (share,) = (row for row in rows if row["measure"] == "top_share")
    assert np.isnan([share["stderr"], share["low"], share["high"]]).all()  # an eigenvector has no bound
    Hg = dense(objective) @ g
    assert found["gradient_cosine"] == pytest.approx(float(g @ Hg / g.norm() / Hg.norm()))
    assert found["gradient_rayleigh"] == pytest.approx(float(g @ Hg / (g @ g) / theta[-1]), rel=1e-3)


def test_five_eigenvalues_are_recorded_where_the_preset_asks_for_them():
    _, adamw, objective, before, moved = problem()
    found = values(CurvatureEvaluations(objective, FULL, adamw).rows(3, before, moved))
    theta = torch.linalg.eigvalsh(dense(objective)).flip(0)[:5].tolist()
    names = ("lambda_max", "lambda_2", "lambda_3", "lambda_4", "lambda_5")
    assert [found[name] for name in names] == pytest.approx(theta, rel=0.01)


def test_sgd_stands_against_two_over_its_learning_rate_and_adam_has_no_such_ratio():
    _, sgd, objective, before, moved = problem("sgd")
    found = values(CurvatureEvaluations(objective, ECONOMY, sgd).rows(3, before, moved))
    assert found["sharpness_edge_ratio"] == pytest.approx(found["lambda_max"] * 0.2 / 2)
    assert "preconditioned_sharpness" not in found
    _, adamw, objective, before, moved = problem()
    assert "sharpness_edge_ratio" not in values(CurvatureEvaluations(objective, ECONOMY, adamw).rows(3, before, moved))


def test_before_the_first_step_there_is_no_metric_and_that_is_no_gap():
    _, adamw, objective, _, _ = problem(steps=0)
    probe = CurvatureEvaluations(objective, FULL, adamw)
    found = values(probe.rows(0, {}, {}))
    assert "preconditioned_sharpness" not in found
    assert "directional_edge_ratio" not in found
    assert probe.missing == []


def test_a_short_evaluation_takes_the_loss_the_top_and_the_step_alone():
    _, adamw, objective, before, moved = problem()
    for preset in (ECONOMY, FULL):
        rows = CurvatureEvaluations(objective, preset, adamw).rows(3, before, moved, long=False)
        assert set(values(rows)) - {"lambda_2", "lambda_3", "lambda_4", "lambda_5"} == {
            "loss",
            "lambda_max",
            "directional_edge_ratio",
            "directional_sharpness",
            "lambda_dir",
            "critical_step",
            "critical_learning_rate",
            "critical_sharpness",
            "critical_ratio",
        }
        assert rows.densities == []


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_critical_learning_rate_is_where_the_same_step_would_leave_the_loss_as_it_was(optimizer):
    model, used, objective, before, moved = problem(optimizer)
    for long in (False, True):
        rows = CurvatureEvaluations(objective, ECONOMY, used).rows(3, before, moved, long=long)
        found = {row["measure"]: row for row in rows.probes}
        step, rate = found["critical_step"], used.param_groups[0]["lr"]
        at, D = (objective.vector.joined([one[p] for p in model.parameters()]) for one in (before, moved))
        start = objective.value_at(at)
        assert objective.value_at(at + step["low"] * D) < start < objective.value_at(at + step["high"] * D)
        for end in ("value", "low", "high"):
            assert found["critical_learning_rate"][end] == pytest.approx(rate * step[end], rel=1e-12)
        assert found["critical_sharpness"]["value"] == pytest.approx(2 / (rate * step["value"]))
        edge = found["directional_edge_ratio"]["value"]
        assert found["lambda_dir"]["value"] == pytest.approx(2 * edge / rate)
        assert found["critical_ratio"]["value"] == pytest.approx(1 / (step["value"] * edge))
        assert (step["products"], step["samples"], step["stderr"] != step["stderr"]) == (0, 0, True)
        assert step["gradients"] > 0


def test_the_search_starts_at_the_last_critical_learning_rate_unless_the_preset_starts_afresh(monkeypatch):
    starts = []

    def spied(*arguments, start, **more):
        starts.append(start)
        return critical_learning_rate(*arguments, start=start, **more)

    monkeypatch.setattr(step_measures, "critical_learning_rate", spied)
    for preset, warm in ((ECONOMY, True), (PRESETS["comparison"], False)):
        _, adamw, objective, before, moved = problem()
        probe = CurvatureEvaluations(objective, preset, adamw, wanted=wanted_measures(["critical"]))
        first, again = (values(probe.rows(3, before, moved)) for _ in range(2))
        assert starts[-2] == 1
        assert starts[-1] == (pytest.approx(first["critical_step"]) if warm else 1)
        assert again["critical_step"] == pytest.approx(first["critical_step"], rel=1 / 16)


def test_groups_of_different_learning_rates_have_a_critical_step_and_no_critical_learning_rate():
    _, adamw, objective, before, moved = problem()
    first, *others = adamw.param_groups[0]["params"]
    same = adamw.param_groups[0]
    groups = [{**same, "params": [first], "lr": 0.5}, {**same, "params": others, "lr": 0.1}]
    probe = CurvatureEvaluations(objective, ECONOMY, adamw)
    found = values(probe.rows(3, before, moved, long=False, groups=groups))
    assert {"critical_step", "critical_ratio"} <= set(found)
    assert not {"critical_learning_rate", "critical_sharpness", "lambda_dir"} & set(found)
    assert probe.missing == []


def test_a_step_without_a_critical_learning_rate_is_missing_with_the_reason_and_stops_nothing():
    _, adamw, objective, before, moved = problem()
    uphill = {p: -one for p, one in moved.items()}
    probe = CurvatureEvaluations(objective, ECONOMY, adamw)
    found = values(probe.rows(3, before, uphill, long=False))
    assert "lambda_max" in found
    assert not any(name.startswith("critical") for name in found)
    (gap,) = probe.missing
    assert "no descent direction of the loss on the fixed data" in gap["why"]
    assert "critical_step" in gap["measures"]
    alone = CurvatureEvaluations(objective, ECONOMY, adamw, wanted=wanted_measures(["critical"]))
    alone.rows(3, before, uphill)
    assert "the loss does not fall along the step" in alone.missing[0]["why"]  # found by losses


def test_the_critical_learning_rate_alone_takes_losses_only():
    _, adamw, objective, before, moved = problem()
    wanted = wanted_measures(["critical"])
    rows = CurvatureEvaluations(objective, ECONOMY, adamw, wanted=wanted).rows(3, before, moved)
    assert {row["measure"] for row in rows.probes} == {
        *("loss", "critical_step", "critical_learning_rate", "critical_sharpness")
    }
    assert sum(row["products"] for row in rows.probes) == 0


def test_following_the_top_costs_a_few_products_after_the_first_evaluation():
    model, adamw, objective, before, moved = problem()
    probe = CurvatureEvaluations(objective, ECONOMY, adamw)
    spent = []
    for _ in range(6):
        rows = probe.rows(3, before, moved, long=False).probes
        spent.append(next(row["products"] for row in rows if row["measure"] == "lambda_max"))
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01)
    assert spent[0] > 3
    assert max(spent[1:]) <= 3


def test_the_density_of_an_evaluation_adds_up_and_has_the_moments_of_the_hessian():
    _, adamw, objective, before, moved = problem()
    rows = CurvatureEvaluations(objective, replace(FULL, products=400), adamw).rows(3, before, moved)
    H = dense(objective)
    assert {row["size"] for row in rows.densities} == {objective.size}
    assert [row["probe"] for row in rows.densities] == list(range(len(rows.densities)))
    for row in rows.densities:
        assert sum(row["weights"]) == pytest.approx(1.0)
        assert row["data_hash"] == objective.data_hash
    settled = np.array(rows.densities[0]["settled"]) > 0
    theta = torch.linalg.eigvalsh(H).numpy()
    for node in np.array(rows.densities[0]["nodes"])[settled]:
        assert np.abs(theta - node).min() < 1e-6


def test_every_row_of_an_evaluation_has_its_certificate_and_its_cost_in_gradients():
    _, adamw, objective, before, moved = problem()
    rows = CurvatureEvaluations(objective, ECONOMY, adamw).rows(3, before, moved)
    for row in rows.probes:
        assert row["step"] == 3
        assert (row["mode"], row["engine"], row["dtype"]) == ("eval", "lossscope", "float64")
        assert row["gradients"] > 0 or row["seconds"] == 0


def test_the_last_planned_evaluation_is_long_and_every_third_before_it_in_economy():
    cadence = Cadence(ECONOMY, 400, 8, 0)
    evaluations = [step for step in range(401) if cadence.evaluation(step)]
    long = [cadence.long(step) for step in evaluations]
    assert long == [False, True, False, False, True, False, False, True]


def test_without_a_plan_every_third_evaluation_is_long_from_the_first():
    cadence = Cadence(ECONOMY, None, None, 0)
    long = []
    for step in (0, 10, 20, 40, 80, 160):
        long.append(cadence.long(step))
        cadence.schedule_next(step)
    assert long == [True, False, False, True, False, False]


def test_flatness_that_is_named_is_taken_at_every_evaluation_and_otherwise_at_long_ones():
    _, adamw, objective, before, moved = problem()
    names = {"adaptive_trace", "adaptive_lambda_max", "balanced_trace", "balanced_lambda_max"}
    named = CurvatureEvaluations(objective, ECONOMY, adamw, wanted=wanted_measures(["adaptive", "balanced"]))
    assert names <= set(values(named.rows(3, before, moved, long=False)))
    preset = CurvatureEvaluations(objective, ECONOMY, adamw)
    assert not names & set(values(preset.rows(3, before, moved, long=False)))
    assert names & set(values(preset.rows(3, before, moved))) == {"adaptive_trace", "adaptive_lambda_max"}
    full = CurvatureEvaluations(objective, PRESETS["full"], adamw)
    assert names <= set(values(full.rows(3, before, moved)))


def test_noise_curves_are_recorded_by_the_fullest_preset_or_where_they_are_named():
    _, adamw, objective, before, moved = problem()
    assert "sigma_star" not in values(CurvatureEvaluations(objective, ECONOMY, adamw).rows(3, before, moved))
    named = CurvatureEvaluations(objective, ECONOMY, adamw, wanted=wanted_measures(["basin"]))
    rows = named.rows(3, before, moved, long=False)
    assert {"loss", "sigma_star"} == set(values(rows))
    (curve,) = rows.curves
    assert (curve["step"], curve["measure"], curve["gauge"]) == (3, "noise_rise", "raw")
    assert len(CurvatureEvaluations(objective, FULL, adamw).rows(3, before, moved).curves) == 1
