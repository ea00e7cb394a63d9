"""Least trace over rescalings: closed forms, an independent minimizer, coverage, invariance, where there is none."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.stats import binom
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.balance import balance
from lossscope.probes.gauge.rescale import rescaled
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.orbit_trace import orbit_trace

X, Y = gaussian(31, 4), torch.arange(31) % 3


def network(*sizes: int, bend: type[nn.Module] = nn.ReLU, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layers = [nn.Linear(a, b) for a, b in zip((4, *sizes), (*sizes, 3), strict=True)]
    return nn.Sequential(*[part for layer in layers for part in (layer, bend())][:-1]).to(dtype)


def objective(model: nn.Module) -> Objective:
    x = X.to(next(model.parameters()).dtype)
    return Objective(model, CrossEntropy(), [(x[:20], Y[:20]), (x[20:], Y[20:])])


def balanced(model: nn.Module) -> Objective:
    return objective(balance(model, batch=X.to(next(model.parameters()).dtype)).model)


def diagonal(model: nn.Module) -> dict[str, Tensor]:
    """Return the diagonal of the Hessian of the mean loss by torch.func, in the shapes of the parameters."""
    named = {name: p.detach() for name, p in model.named_parameters()}

    def loss(theta: Tensor) -> Tensor:
        cut = torch.split(theta, [p.numel() for p in named.values()])
        parts = {name: part.view_as(p) for (name, p), part in zip(named.items(), cut, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, parts, (X,)), Y)

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    whole = torch.func.hessian(loss)(theta).diagonal()
    cut = torch.split(whole, [p.numel() for p in named.values()])
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), cut, strict=True)}


def closed_form(model: nn.Module) -> float:
    """Return the least trace of two layers: twice the roots of the sums into and out of each neuron, and the rest."""
    h = diagonal(model)
    into, out = h["0.weight"].sum(1) + h["0.bias"], h["2.weight"].sum(0)
    return float(h["2.bias"].sum() + 2 * (into * out).sqrt().sum())


@pytest.mark.parametrize("bend", [nn.ReLU, nn.Identity])
@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_of_the_scalar_factorization_it_is_two_wherever_it_stands(w: float, bend: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), bend(), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(w)
        model[2].weight.fill_(1 / w)
    half = Objective(model, lambda net, x: (net(x) - 1).square().mean() / 2, [torch.ones(1, 1, dtype=torch.float64)])
    found = orbit_trace(half)
    assert found.trace.value == pytest.approx(2, rel=1e-10)
    assert found.factors.prod().item() == pytest.approx(1, rel=1e-12)


def test_of_two_layers_it_is_the_closed_form_at_any_scale() -> None:
    model = network(6)
    assert closed_form(rescaled(model, seed=3)) == pytest.approx(closed_form(model), rel=1e-9)
    for one in (model, rescaled(model, seed=3)):
        before = copy.deepcopy(one.state_dict())
        found = orbit_trace(objective(one))
        assert all(torch.equal(weight, before[name]) for name, weight in one.state_dict().items())
        assert found.trace.value == pytest.approx(closed_form(model), rel=1e-9)
        assert found.above == 0
        assert found.trace.converged


def test_of_two_linear_layers_it_is_that_of_one_common_factor() -> None:
    at = balanced(network(6, bend=nn.Identity))
    h = diagonal(at.model)
    first, second = (float(h[f"{layer}.weight"].sum() + (h["0.bias"].sum() if layer == 0 else 0)) for layer in (0, 2))
    right = 2 * math.sqrt(first * second) + float(h["2.bias"].sum())
    assert orbit_trace(at).trace.value == pytest.approx(right, rel=1e-9)


def test_of_three_layers_it_is_what_an_independent_minimizer_finds() -> None:
    model = rescaled(network(6, 5), seed=1)
    h = {name: part.numpy() for name, part in diagonal(model).items()}

    def trace(x: np.ndarray) -> float:
        a, b = np.exp(2 * x[:6]), np.exp(2 * x[6:])
        inner = (h["2.weight"] / b[:, None] * a).sum() + (h["2.bias"] / b).sum()
        last = (h["4.weight"] * b).sum() + h["4.bias"].sum()
        return float((h["0.weight"] / a[:, None]).sum() + (h["0.bias"] / a).sum() + inner + last)

    right = minimize(trace, np.zeros(11), method="BFGS", options={"gtol": 1e-9}).fun
    found = orbit_trace(objective(model), max_products=300)
    assert found.trace.value == pytest.approx(right, rel=1e-7)
    assert right < 0.9 * sum(part.sum() for part in h.values())


@pytest.fixture(scope="module")
def wide() -> tuple[Objective, float]:
    """A network too large for its diagonal to be computed, and its least trace."""
    at = balanced(network(40))
    return at, closed_form(at.model)


def test_intervals_cover_the_least_trace_and_the_height_shrinks_with_the_budget(wide: tuple[Objective, float]) -> None:
    at, right = wide
    found = [orbit_trace(at, max_products=100, seed=seed) for seed in range(8)]
    assert sum(not one.trace.low <= right <= one.trace.high for one in found) <= binom.ppf(0.999, 8, 0.05)
    h = torch.cat([part.reshape(-1) for part in diagonal(at.model).values()])
    heights = [float((h / one.factors.square()).sum()) - right for one in found]
    assert min(heights) > 0
    assert sum(one.above for one in found) > 0.8 * sum(heights)
    assert all(one.trace.products <= 100 for one in found)
    more = orbit_trace(at, max_products=600)
    assert 0 < more.above < sum(one.above for one in found) / 8
    assert more.trace.low <= right <= more.trace.high


@pytest.mark.slow
def test_intervals_cover_the_least_trace_in_many_seeds(wide: tuple[Objective, float]) -> None:
    at, right = wide
    for budget in (80, 200):
        found = [orbit_trace(at, max_products=budget, seed=seed).trace for seed in range(60)]
        assert sum(not one.low <= right <= one.high for one in found) <= binom.ppf(0.999, 60, 0.05)


def test_a_rescaling_leaves_even_the_estimate_and_moves_the_trace() -> None:
    model = network(40, 8)
    other = rescaled(model, seed=2)
    traces = [sum(float(part.sum()) for part in diagonal(one).values()) for one in (model, other)]
    assert abs(traces[1] / traces[0] - 1) > 0.5
    before, after = (orbit_trace(balanced(one), max_products=100) for one in (model, other))
    assert after.trace.value == pytest.approx(before.trace.value, rel=1e-6)
    assert after.trace.low == pytest.approx(before.trace.low, rel=1e-5)


def test_a_network_without_rescalings_has_its_trace() -> None:
    model = network(5, bend=nn.Tanh)
    found = orbit_trace(objective(model), rel=1e-9)
    assert found.trace.value == pytest.approx(sum(float(part.sum()) for part in diagonal(model).values()), rel=1e-9)
    assert bool((found.factors == 1).all())


def test_folded_gains_count_and_statistics_stay_bit_for_bit() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    model(X)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ProbeError, match=r"gains of 1.* \(fold it by balance\(model\)\)"):
        orbit_trace(objective(model))
    bare = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    folded = balanced(model.eval())
    with torch.no_grad():
        for mine, theirs in zip(
            bare.parameters(), (p for p in folded.model.parameters() if p.requires_grad), strict=True
        ):
            mine.copy_(theirs)
    assert orbit_trace(folded).trace.value == pytest.approx(closed_form(bare), rel=1e-6)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_in_bfloat16_the_interval_holds_the_value_in_float64() -> None:
    narrow = network(6, dtype=torch.bfloat16)
    right = closed_form(copy.deepcopy(narrow).double())
    found = orbit_trace(objective(narrow)).trace
    assert found.low - 0.02 * right <= right <= found.high + 0.02 * right  # the data are rounded too
    assert found.high - found.low > 1e-3 * right


def penalized(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1]) + sum(p.square().sum() for p in model.parameters())


def test_a_small_network_in_float32_meets_the_accuracy_that_was_asked() -> None:
    x, y = gaussian(40, 4, dtype=torch.float32), torch.arange(40) % 2
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    found = orbit_trace(Objective(balance(net).model, CrossEntropy(), [(x, y)]))
    assert found.above == 0
    assert found.trace.converged
    assert found.trace.cause == ""


def test_where_there_is_no_least_trace_the_reason_is_told() -> None:
    with pytest.raises(ProbeError, match=r"the rescalings of this network are not all known: 0: 1 \(LayerNorm"):
        orbit_trace(objective(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()))
    hill = Objective(network(5), lambda net, x: -net(x).square().mean(), [X])
    with pytest.raises(ProbeError, match=r"no minimum over the rescalings: the curvature into \d neurons is negative"):
        orbit_trace(hill)
    with pytest.raises(ProbeError, match=r"changes the loss from .* a penalty"):
        orbit_trace(Objective(rescaled(network(5), seed=1), penalized, [(X, Y)]))
    with pytest.raises(ProbeError, match="max_products must be at least 64"):
        orbit_trace(objective(network(5)), max_products=63)
    part = objective(network(5)).restricted(["2.weight"])
    with pytest.raises(ProbeError, match=r"0\.weight can be rescaled and is not among the parameters"):
        orbit_trace(part)


def test_dead_neurons_do_no_harm() -> None:
    model = network(6)
    with torch.no_grad():
        model[0].bias[2] = -100
    assert orbit_trace(objective(model)).trace.value == pytest.approx(closed_form(model), rel=1e-9)
