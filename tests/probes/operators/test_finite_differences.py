"""Differences of gradients: their measured error, the step that it chooses, and parameters of different scale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.finite_differences import DIFFERENCES, Differences
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.invariant import theta_hessian_theta
from zoo import MEMBERS

STEPS = [2.0**k for k in range(-8, 9)]


def scaled_inputs(scale: float, *, dtype: torch.dtype = torch.float64) -> Objective:
    """Return a network whose first weights are small as its inputs are large, by the same factor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        data = [(torch.randn(n, 4, dtype=dtype) * scale, torch.randint(0, 3, (n,))) for n in (6, 5)]
    with torch.no_grad():
        model[0].weight.div_(scale)
    return Objective(model, CrossEntropy(), data)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("of", ["all", "first", "others"])
def test_they_are_right_at_every_scale_of_a_layer_and_know_their_error(scale: float, of: str) -> None:
    objective = scaled_inputs(scale)
    v = torch.randn(objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = objective.vector.indices(["0.weight"])
    if of == "others":
        v[first] = 0
    elif of == "first":
        v = torch.zeros_like(v).index_copy(0, first, v[first])
    exact, differences = hessian(objective), hessian(objective, method="differences")
    expected, found = exact @ v, differences @ v
    error = float((found - expected).norm() / expected.norm())
    assert error < 1e-8
    assert error < 8 * differences.unit < 1e-7


def test_parameters_without_a_gradient_and_empty_ones_are_moved_with_the_others() -> None:
    model = nn.Linear(2, 2, bias=False).double()
    model.unused, model.none = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.zeros(0).double())
    objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.eye(2).double()])
    v = torch.ones(objective.size).double()
    assert torch.allclose(hessian(objective, method="differences") @ v, hessian(objective) @ v, atol=1e-8)


class Elementwise(nn.Module):
    """A sum over the parameters of a function of each."""

    def __init__(self, x: Tensor, power: int) -> None:
        super().__init__()
        self.x = nn.Parameter(x)
        self.power = power

    def forward(self, c: Tensor) -> Tensor:
        return (c * self.x**self.power).sum() / self.power


class Narrow(nn.Module):
    """A network that cannot be evaluated in float64, as one with kernels of its own."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        assert self.net[0].weight.dtype == torch.float32
        return self.net(x)


def narrow(act: nn.Module | None = None) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Narrow(act or nn.Tanh())
        data = [(torch.randn(32, 6), torch.randint(0, 3, (32,)))]
    return Objective(model, CrossEntropy(), data)


def wide(act: nn.Module | None = None) -> Objective:
    of = narrow(act)
    data = [(x.double(), y) for x, y in of.data.batches]
    return Objective(of.model.net.double(), CrossEntropy(), data)


@contextmanager
def differences(objective: Objective, *, own: bool = True) -> Iterator[Differences]:
    """Yield differences on the first batch, in the dtype of the objective."""
    with objective.evaluating():
        found = Differences(objective, replace(next(objective.passes()), before=None))
        if own:
            found.objective = objective
        yield found


def elementwise(power: int, size: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Objective, Tensor]:
    c, x = gaussian(size, seed=1).to(dtype), (1 + gaussian(size, seed=2).square()).to(dtype)
    return Objective(Elementwise(x, power), lambda m, batch: m(batch), [c], additive=False), c


@pytest.mark.parametrize("stretch", [1e4, 1e5, 1e6])
def test_the_truncation_of_a_quartic_is_its_closed_form(stretch: float) -> None:
    objective, c = elementwise(4)
    v, x = gaussian(40, seed=3), objective.parameters()
    with differences(objective) as found:
        error = found.error(v, stretch)
        (_, scale) = next(found._steps(x, v, stretch))
        off = found.along(v, stretch) - 3 * c * x**2 * v
    expected = scale**2 * c * v**3  # ((x + hv)^3 - (x - hv)^3) / 2h = 3 x^2 v + h^2 v^3
    torch.testing.assert_close(off, expected, rtol=1e-3, atol=0)
    assert error.truncation == pytest.approx(float(expected.norm()), rel=1e-3)
    assert error.rounding < 1e-2 * error.truncation


@pytest.mark.parametrize("stretch", [0.1, 1.0, 10.0])
def test_the_rounding_of_a_quadratic_is_all_of_its_error(stretch: float) -> None:
    objective, c = elementwise(2, size=4000, dtype=torch.float32)
    v = gaussian(4000, seed=3).float()
    with differences(objective) as found:
        error = found.error(v, stretch)
        off = float((found.along(v, stretch) - c * v).norm())
    assert 0.5 * off < error.rounding < 2 * off
    assert 3 * error.truncation < 2 * error.rounding  # sqrt(5) / 2 of the rounding


def test_the_error_falls_with_the_square_of_the_step_until_rounding_takes_over() -> None:
    objective = wide()
    exact = hessian(objective) @ gaussian(objective.size)
    with differences(objective) as found:
        v = gaussian(objective.size)
        off = [float((found.along(v, s) - exact).norm()) for s in (1000.0, 500.0, 250.0)]
        known = [found.error(v, s).truncation for s in (1000.0, 500.0, 250.0)]
        fine = [found.error(v, s).rounding for s in (0.04, 0.02, 0.01)]
    assert [a / b for a, b in pairwise(off)] == pytest.approx([4, 4], rel=0.05)
    assert known == pytest.approx(off, rel=0.05)
    assert fine[2] / fine[0] == pytest.approx(4, rel=0.5)


def test_a_jump_of_the_gradient_within_the_step_is_within_the_bound() -> None:
    objective = Objective(nn.Linear(1, 1, bias=False), lambda m, x: m(x).relu().mean(), [torch.ones(1, 1)])
    for place in (0.01, 0.3, 0.9):
        with objective.at(torch.tensor([1.0])), differences(objective) as found:
            (_, scale) = next(found._steps(torch.ones(1), torch.ones(1), 1.0))
        with objective.at(torch.tensor([place * scale])), differences(objective) as found:
            stretch = scale / next(found._steps(objective.parameters(), torch.ones(1), 1.0))[1]
            off = abs(float(found.along(torch.ones(1), stretch)))
            assert off == pytest.approx(1 / (2 * scale), rel=1e-3)
            assert found.error(torch.ones(1), stretch).bound >= off


@pytest.mark.parametrize("act", [nn.Tanh(), nn.GELU(), nn.Softplus()])
def test_the_step_that_is_chosen_has_nearly_the_least_error_of_all(act: nn.Module) -> None:
    objective, exact = narrow(act), hessian(wide(act))
    with differences(objective) as found:
        of = exact @ found.probe.double()
        scan = [float((found.along(found.probe, s).double() - of).norm()) for s in STEPS]
        assert DIFFERENCES.unit is not None
        unit = DIFFERENCES.unit(objective, found._at).unit
        chosen = float((found.along(found.probe, objective.difference_steps[torch.float32]).double() - of).norm())
    assert chosen < 3 * min(scan)
    assert chosen < unit * float(of.norm()) < 0.01 * float(of.norm())


def cells(name: str) -> Iterator[tuple[float, float]]:
    """Yield the bound and the true error of differences on a member, in float64 and in its own dtype."""
    member = MEMBERS[name]
    of, exact = member.objective(), hessian(member.objective(member.double()).batch(0))
    for own in (False, True):
        with differences(of, own=own) as found:
            axis = torch.zeros(of.size).index_fill(0, torch.tensor([of.size // 2]), 1.0).double()
            for v in (gaussian(of.size), gaussian(of.size, seed=1), axis):
                right = exact @ v
                moved = v.to(found.objective.dtype)
                off = float((found.along(moved).double() - right).norm())
                yield found.error(moved).bound + 1e-13 * float(right.norm()), off


@pytest.mark.parametrize("name", ["mlp"] if "mlp" in MEMBERS else [next(iter(MEMBERS))])
def test_the_bound_covers_the_true_error_on_a_member_of_the_zoo(name: str) -> None:
    assert all(off <= bound for bound, off in cells(name))


@pytest.mark.slow
def test_the_bound_covers_the_true_error_in_95_of_100_cells_of_the_zoo() -> None:
    found = [cell for name in MEMBERS for cell in possible(name)]
    assert len(found) > 150
    assert sum(off <= bound for bound, off in found) >= 0.95 * len(found)


def possible(name: str) -> list[tuple[float, float]]:
    """Return the cells of a member; none where its loss has no second derivative, or updates buffers."""
    member = MEMBERS[name]
    try:
        exact = hessian(member.objective(member.double()))
        exact @ torch.zeros(exact.size).double()
        if exact.method != "reverse" or exact.size > 3000 or exact.objective.mode == "train":
            return []
        return list(cells(name))
    except Exception:  # a member may refuse in any way
        return []


@pytest.mark.parametrize("act", [nn.Tanh(), nn.GELU()])
def test_bounds_and_intervals_hold_the_error_of_a_model_that_has_no_float64(act: nn.Module) -> None:
    objective, exact = narrow(act), torch.linalg.eigvalsh(hessian(wide(act)) @ torch.eye(83).double())
    operator = hessian(objective, method="differences")
    found = measure_spectrum(operator, top=2, max_products=70, rel=1e-5)
    assert found.top is not None
    assert found.trace is not None
    assert found.frobenius is not None
    assert bool(((found.top.values - exact.flip(0)[:2]).abs() <= found.top.bounds).all())
    assert float(found.top.bounds[0]) < 0.01 * float(exact[-1])
    assert found.trace.low <= float(exact.sum()) <= found.trace.high
    assert found.frobenius.low <= float(exact.norm()) <= found.frobenius.high
    assert not bool(found.top.converged[0])  # to 1e-5, which is below its error
    assert "off by up to" in found.cause


def test_a_form_by_differences_has_their_error() -> None:
    v = wide().parameters()
    exact = float(v @ (hessian(wide()) @ v))
    objective = narrow()
    operator = hessian(objective, method="differences")
    image = operator @ v.float()
    error = operator.product_error(v.float()[:, None], image[:, None])
    assert error is not None
    assert abs(float(v @ image.double()) - exact) <= float(error.forms(v[:, None])[0]) < 0.01 * abs(exact)
    assert theta_hessian_theta(wide()).value == pytest.approx(exact)
