from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from helpers import Vector, gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.step_quality import _rounded_step, layer_remainders, secant_curvature, step_quality


def symmetric(n: int, seed: int) -> Tensor:
    A = gaussian(n, n, seed=seed)
    return (A + A.mT) / 2


def quadratic(A: Tensor, theta: Tensor) -> Objective:
    return Objective(Vector(theta), lambda m, _: m.theta @ A @ m.theta / 2 + m.theta.sum(), [torch.zeros(1)])


def cubic(a: float, t: float = 0.0) -> Objective:
    return Objective(Vector(torch.tensor([t]).double()), lambda m, _: a * m.theta[0] ** 3, [torch.zeros(1)])


def network(dtype: torch.dtype = torch.float64) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
        net = nn.Sequential(*parts).double().to(dtype)
    return Objective(net, CrossEntropy(), [(gaussian(n, 4, seed=n).to(dtype), torch.arange(n) % 3) for n in (9, 4)])


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_a_quadratic_leaves_no_second_remainder_and_half_its_curvature_as_the_first(seed: int, n: int) -> None:
    A, theta, D = symmetric(n, seed), gaussian(n, seed=seed + 1), gaussian(n, seed=seed + 2)
    found = step_quality(quadratic(A, theta), D)
    curvature = float(D @ A @ D)
    size = 1 + abs(found.change) + abs(curvature) + abs(found.slope)
    assert found.first_remainder == pytest.approx(curvature / 2, abs=1e-12 * size)
    assert found.second_remainder == pytest.approx(0, abs=1e-12 * size)
    assert found.curvature == pytest.approx(curvature, abs=1e-12 * size)
    if abs(found.slope + curvature / 2) > 1e-3:
        assert found.trust_ratio == pytest.approx(1, abs=1e-8)
    assert found.relative_second == pytest.approx(0, abs=1e-8)


def test_a_cubic_leaves_its_third_power() -> None:
    found = step_quality(cubic(2.0), torch.tensor([0.5]))
    assert (found.slope, found.curvature) == (0.0, 0.0)
    assert (found.change, found.first_remainder, found.second_remainder) == (0.25, 0.25, 0.25)
    assert all(math.isnan(x) for x in (found.relative_first, found.relative_second, found.trust_ratio))
    moved = step_quality(cubic(2.0, 1.0), torch.tensor([-0.5]))  # 2 t^3 from 1: slope 6, curvature 12
    assert (moved.slope, moved.curvature, moved.change) == pytest.approx((-3.0, 3.0, -1.75))
    assert moved.second_remainder == pytest.approx(2 * (-0.5) ** 3)
    assert moved.relative_first == pytest.approx(1.25 / 3)
    assert moved.relative_second == pytest.approx(0.25 / 4.5)
    assert moved.trust_ratio == pytest.approx(1.75 / 1.5)


def test_the_remainders_of_a_network_fall_as_the_square_and_the_cube_of_the_step() -> None:
    objective = network()
    D = gaussian(objective.size) / 10
    whole, half = step_quality(objective, D), step_quality(objective, D / 2)
    assert whole.first_remainder / half.first_remainder == pytest.approx(4, rel=0.3)
    tiny = [step_quality(objective, D * scale).second_remainder for scale in (0.02, 0.01)]
    assert tiny[0] / tiny[1] == pytest.approx(8, rel=0.05)


def test_the_model_may_stand_after_the_step() -> None:
    objective = network()
    theta, D = objective.parameters(), gaussian(objective.size, seed=1) / 10
    here = step_quality(objective, D), secant_curvature(objective, D)
    with objective.at(theta + D):
        there = step_quality(objective, D, at=theta), secant_curvature(objective, D, at=theta)
    assert here[1] == there[1]
    for field in ("change", "slope", "curvature", "first_remainder", "second_remainder", "trust_ratio", "rounding"):
        assert getattr(here[0], field) == getattr(there[0], field)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-6])
def test_what_rounding_may_have_done_covers_what_float32_did(scale: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 10))
    single = Objective(net, CrossEntropy(), [(torch.randn(512, 30), torch.randint(0, 10, (512,)))])
    wide = single.in_double()
    for seed in range(10):
        D = _rounded_step(single, (gaussian(single.size, seed=seed) * scale / 30).float())
        found, true = secant_curvature(single, D), secant_curvature(wide, D.double())
        assert abs(found.rayleigh - true.rayleigh) <= found.rounding
        assert abs(found.norm - true.norm) <= found.rounding
        assert abs(found.alignment - true.alignment) <= found.alignment_rounding
        step, exact = step_quality(single, D), step_quality(wide, D.double())
        for field in ("change", "first_remainder", "second_remainder"):
            assert abs(getattr(step, field) - getattr(exact, field)) <= step.rounding
    if scale == 1e-6:
        assert found.rounding > true.norm / 10  # the bound is tight within a factor of ten
    if scale == 1.0:
        assert found.rounding < true.norm / 1e3


def test_the_model_is_left_bit_for_bit() -> None:
    objective = network(torch.float32)
    objective.model.train()
    before = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    state = torch.get_rng_state()
    D = gaussian(objective.size).float()
    step_quality(objective, D)
    secant_curvature(objective, D)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.model.training
    assert all(p.grad is None for p in objective.model.parameters())


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5])
def test_float32_is_off_by_no_more_than_the_rounding_says(size: float) -> None:
    coarse = network(torch.float32)
    for seed in range(10):
        D = size * gaussian(coarse.size, seed=seed).float()
        s = _rounded_step(coarse, D)
        wide = Objective(
            network().model,
            CrossEntropy(),
            [(x.double(), y) for x, y in (network(torch.float32).data.batches)],
        )
        exact = step_quality(wide, s.double(), at=coarse.parameters().double())
        found = step_quality(coarse, D)
        slack = found.rounding + 1e-5 * abs(found.slope)
        assert found.change == pytest.approx(exact.change, abs=slack)
        assert found.first_remainder == pytest.approx(exact.first_remainder, abs=slack)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_secant_of_a_quadratic_is_its_rayleigh_quotient(seed: int) -> None:
    A, D = symmetric(5, seed), gaussian(5, seed=seed + 1)
    found = secant_curvature(quadratic(A, gaussian(5, seed=seed + 2)), D)
    assert found.rayleigh == pytest.approx(float(D @ A @ D / (D @ D)), abs=1e-12)
    assert found.norm == pytest.approx(float((A @ D).norm() / D.norm()), rel=1e-10)
    assert found.alignment == pytest.approx(found.rayleigh / found.norm, abs=1e-12)
    assert abs(found.rayleigh) <= found.norm * (1 + 1e-12)


def test_the_secant_is_the_mean_curvature_over_the_segment() -> None:
    assert secant_curvature(cubic(2.0, 1.0), torch.tensor([2.0])).rayleigh == pytest.approx(24)  # 12 t over [1, 3]
    objective = network()
    D = 1e-4 * gaussian(objective.size)
    local = float(D @ (hessian(objective) @ D) / (D @ D))
    assert secant_curvature(objective, D).rayleigh == pytest.approx(local, rel=1e-3)


def test_a_zero_step_is_a_gap() -> None:
    objective = network()
    secant = secant_curvature(objective, torch.zeros(objective.size))
    assert all(math.isnan(x) for x in (secant.rayleigh, secant.norm, secant.alignment))
    found = step_quality(objective, torch.zeros(objective.size))
    assert (found.change, found.first_remainder) == (0.0, 0.0)
    assert math.isnan(found.trust_ratio)
    flat = Objective(Vector(torch.ones(2)), lambda m, _: m.theta.sum(), [torch.zeros(1)])
    straight = secant_curvature(flat, torch.ones(2))
    assert (straight.rayleigh, straight.norm) == (0.0, 0.0)
    assert math.isnan(straight.alignment)


def test_a_step_that_the_parameters_cannot_take_is_the_one_they_took() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    objective = Objective(model, lambda m, x: m(x).float().square().mean(), [torch.ones(1, 1, dtype=torch.bfloat16)])
    assert _rounded_step(objective, torch.tensor([1e-4])).tolist() == [0.0]
    assert step_quality(objective, torch.tensor([1e-4])).change == 0.0
    assert math.isnan(secant_curvature(objective, torch.tensor([1e-4])).rayleigh)


def test_a_step_that_is_not_finite_or_does_not_fit_is_refused() -> None:
    objective = network()
    for measure in (step_quality, secant_curvature):
        with pytest.raises(ProbeError, match="displacement must be finite"):
            measure(objective, torch.full((objective.size,), math.nan))
        with pytest.raises(ProbeError, match=r"vector must have shape \(.+, got \(3,\)"):
            measure(objective, torch.ones(3))


def small_network() -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Objective(net, CrossEntropy(), [(gaussian(n, 4, seed=n), torch.arange(n) % 3) for n in (9, 4)])


def test_each_remainder_is_that_of_a_step_of_one_tensor_alone() -> None:
    objective = small_network()
    D = gaussian(objective.size) / 5
    found = layer_remainders(objective, D).by_name
    assert tuple(found) == objective.names
    for name, remainder in found.items():
        alone = torch.zeros_like(D)
        where = objective.vector.indices([name])
        alone[where] = D[where]
        assert remainder == pytest.approx(step_quality(objective, alone).first_remainder, rel=1e-9)


def test_on_a_quadratic_a_layer_remainder_is_half_the_curvature_of_the_block() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([2.0]).double())
            self.b = nn.Parameter(torch.tensor([3.0]).double())

    objective = Objective(Two(), lambda m, _: (2 * m.a**2 + 5 * m.a * m.b + 3 * m.b**2).sum(), [torch.zeros(1)])
    found = layer_remainders(objective, torch.tensor([1.0, -2.0])).by_name
    assert found == pytest.approx({"a": 2.0, "b": 12.0})
    whole = step_quality(objective, torch.tensor([1.0, -2.0])).first_remainder
    assert whole == pytest.approx(2 + 12 - 10)  # the layer remainders exclude cross curvature


def test_layer_remainders_leave_the_model_bit_for_bit_and_it_may_stand_after_the_step() -> None:
    objective = small_network()
    theta, D = objective.parameters(), gaussian(objective.size, seed=1) / 5
    here = layer_remainders(objective, D)
    assert torch.equal(objective.parameters(), theta)
    with objective.at(theta + D):
        assert layer_remainders(objective, D, at=theta) == here


def test_a_displacement_that_is_not_finite_has_no_remainders() -> None:
    with pytest.raises(ProbeError, match="displacement must be finite"):
        layer_remainders(small_network(), torch.full((small_network().size,), math.inf))
