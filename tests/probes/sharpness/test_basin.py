"""Basin radius and noise curve: closed forms, coverage over seeds, invariance, and what has no radius."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from helpers import Vector, gaussian, generator
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.basin import basin_radius, noise_curve
from lossscope.probes.sharpness.invariant import adaptive_trace

RISE = 0.1


def quadratic(eigenvalues: torch.Tensor, theta: torch.Tensor) -> Objective:
    """Return a loss of curvature `eigenvalues` with its minimum at theta."""
    at = theta.clone()
    return Objective(
        Vector(theta), lambda model, x: x[0] * (eigenvalues * (model.theta - at) ** 2).sum() / 2, [torch.ones(1)]
    )


def truth(eigenvalues: torch.Tensor, theta: torch.Tensor) -> float:
    """Return the radius of a quadratic over all noise: sqrt(2 rise / adaptive trace)."""
    return math.sqrt(2 * RISE / float((eigenvalues * theta**2).sum()))


def net(width: int = 6) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)).double()


def of(model: nn.Module) -> Objective:
    x = gaussian(60, 4)
    return Objective(model, CrossEntropy(), [(x[:40], torch.arange(40) % 3), (x[40:], torch.arange(20) % 3)])


def test_the_radius_of_a_quadratic_follows_from_the_draws_in_closed_form() -> None:
    eigenvalues, theta = gaussian(40).exp(), gaussian(40, seed=1)
    for seed in (0, 1, 2):
        draw = generator(seed)
        z = torch.stack([torch.randn(40, generator=draw) for _ in range(32)]).double()
        right = math.sqrt(2 * RISE / float((eigenvalues * theta**2 * z**2).sum(1).mean()))
        found = basin_radius(quadratic(eigenvalues, theta), rel=1e-3, seed=seed)
        assert found.value == pytest.approx(right, rel=1e-3)
        assert found.low < found.value < found.high
        assert found.samples == 32
        assert found.converged


def test_many_draws_find_the_radius_of_the_adaptive_trace() -> None:
    eigenvalues, theta = gaussian(40).exp(), gaussian(40, seed=1)
    found = basin_radius(quadratic(eigenvalues, theta), draws=300)
    assert found.value == pytest.approx(truth(eigenvalues, theta), rel=0.05)
    trace = adaptive_trace(quadratic(eigenvalues, theta), max_products=64).value
    assert truth(eigenvalues, theta) == pytest.approx(math.sqrt(2 * RISE / trace), rel=1e-6)


def misses(eigenvalues: torch.Tensor, seeds: range, draws: int) -> int:
    """Return how many intervals miss the radius over all noise."""
    theta = gaussian(len(eigenvalues), seed=1)
    objective, right = quadratic(eigenvalues, theta), truth(eigenvalues, theta)
    found = [basin_radius(objective, draws=draws, seed=seed) for seed in seeds]
    return sum(not one.low <= right <= one.high for one in found)


SPECTRA = {"flat": torch.ones(30), "decaying": 1 / torch.arange(1.0, 31.0)}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_few_intervals_miss(spectrum: str) -> None:
    assert misses(SPECTRA[spectrum].double(), range(16), 32) <= binom.ppf(0.999, 16, 0.06)


@pytest.mark.slow
@pytest.mark.parametrize("draws", [32, 64])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_intervals_cover_in_93_to_98_per_cent_of_seeds(spectrum: str, draws: int) -> None:
    count = misses(SPECTRA[spectrum].double(), range(1000, 2000), draws)
    assert binom.ppf(0.001, 1000, 0.02) <= count <= binom.ppf(0.999, 1000, 0.07)


def test_the_interval_is_far_too_narrow_for_other_numbers() -> None:
    eigenvalues, theta = torch.ones(30).double(), gaussian(30, seed=1)
    found = basin_radius(quadratic(eigenvalues, theta))
    assert not found.low <= 1.5 * truth(eigenvalues, theta) <= found.high
    assert found.stderr == pytest.approx(truth(eigenvalues, theta) / 2 * math.sqrt(2 / (32 * 15)), rel=0.6)


@pytest.mark.parametrize("rise", [0.01, 0.1, 1.0])
def test_the_mean_rise_at_the_radius_is_the_one_asked_for(rise: float) -> None:
    objective = of(net())
    found = basin_radius(objective, rise=rise, rel=1e-3)
    assert noise_curve(objective, [found.value]).mean[0] == pytest.approx(rise, rel=3e-3)


def test_a_known_curve_saves_losses_and_changes_the_radius_within_its_tolerance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = of(net())
    curve = noise_curve(objective)
    alone = basin_radius(objective)
    calls: list[int] = []
    evaluate = Objective.value_at
    monkeypatch.setattr(Objective, "value_at", lambda self, at: calls.append(1) or evaluate(self, at))
    found = basin_radius(objective, known=curve)
    assert len(calls) <= 3 * 32
    assert found.value == pytest.approx(alone.value, rel=0.02)
    with pytest.raises(ProbeError, match="same draws and seed"):
        basin_radius(objective, known=curve, seed=1)


@pytest.mark.parametrize("factor", [2.0**-6, 2.0**9, -1.0])
def test_a_diagonal_rescaling_of_single_neurons_leaves_the_number_as_it_is(factor: float) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Identity() if factor < 0 else nn.ReLU(), nn.Linear(6, 3)).double()
    model.load_state_dict(net().state_dict())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[2] *= factor
        other[0].bias[2] *= factor
        other[2].weight[:, 2] /= factor
    before, after = basin_radius(of(model)), basin_radius(of(other))
    assert (after.value, after.low, after.high) == (before.value, before.low, before.high)  # bit for bit
    assert (noise_curve(of(model)).mean == noise_curve(of(other)).mean).all()


def test_the_curve_has_the_mean_and_the_interval_of_the_draws() -> None:
    objective, theta = of(net()), of(net()).parameters()
    curve = noise_curve(objective, [0.3, 0.1], draws=16, seed=3)
    assert curve.sigmas.tolist() == [0.1, 0.3]
    draw = generator(3)
    z = torch.stack([torch.randn(len(theta), generator=draw) for _ in range(16)]).double()
    before, rises = objective.value(), []
    for one in z:
        with objective.at(theta * (1 + 0.3 * one)):
            rises.append(objective.value() - before)
    assert curve.rises[1] == pytest.approx(np.array(rises), rel=1e-9)
    assert curve.mean[1] == pytest.approx(np.mean(rises), rel=1e-9)
    assert (curve.low < curve.mean).all()
    assert (curve.mean < curve.high).all()


def test_the_model_is_not_touched_and_no_graph_is_kept() -> None:
    model = net()
    objective = of(model)
    before = [(p.clone(), p._version, p.data_ptr()) for p in model.parameters()]
    state = torch.get_rng_state()
    basin_radius(objective)
    for p, (kept, version, place) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, kept)
        assert (p._version, p.data_ptr(), p.grad) == (version, place, None)
    assert torch.equal(torch.get_rng_state(), state)


def descending(theta: float) -> Objective:
    """Return a linear loss, which falls and rises alike under noise."""
    return Objective(Vector(torch.tensor([theta])), lambda model, x: x[0] * model.theta.sum(), [torch.ones(1)])


def test_a_mean_rise_may_be_negative_and_then_has_no_radius() -> None:
    concave = Objective(Vector(torch.ones(5)), lambda model, x: -x[0] * model.theta.square().sum(), [torch.ones(1)])
    curve = noise_curve(concave)
    assert (curve.mean[-2:] < 0).all()
    with pytest.raises(ProbeError, match=r"levels tried up to 10, less than 0\.1: no radius up to 10"):
        basin_radius(concave)


def test_parameters_at_zero_have_no_radius() -> None:
    flat = quadratic(torch.ones(4).double(), torch.zeros(4).double())
    with pytest.raises(ProbeError, match="no radius up to 10"):
        basin_radius(flat)


def test_a_radius_below_the_range_is_missing() -> None:
    steep = quadratic(torch.full((4,), 1e12).double(), torch.ones(4).double())
    with pytest.raises(ProbeError, match=r"no radius down to 0\.0001"):
        basin_radius(steep)


def walled(edge: float) -> Objective:
    """Return a loss that is infinite where a parameter has moved too far."""

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        far = (model.theta - 1).abs().max() > edge
        return x[0] * (model.theta - 1).square().mean() + torch.where(far, math.inf, 0.0)

    return Objective(Vector(torch.ones(50)), loss, [torch.ones(1)])


def test_a_loss_that_is_not_finite_is_a_gap_of_the_curve_and_ends_the_basin() -> None:
    curve = noise_curve(walled(0.5))
    assert np.isfinite(curve.mean).tolist() == [sigma < 0.12 for sigma in curve.sigmas]
    assert np.isnan(curve.low[-1])
    assert curve.not_finite == tuple(curve.sigmas[curve.sigmas > 0.12])
    with pytest.raises(ProbeError, match=r"not finite from relative noise of 0.1\d* on.* before"):
        basin_radius(walled(0.5))
    found = basin_radius(walled(3.0))  # it rises by 0.1 at 0.32, and is infinite from about 0.75
    assert found.value == pytest.approx(math.sqrt(0.1), rel=0.1)
    assert found.low < math.sqrt(0.1) < found.high


def test_a_rise_below_the_rounding_of_the_loss_is_refused() -> None:
    far = Objective(Vector(torch.ones(5)), lambda model, x: x[0] * model.theta.sum() + 1e6, [torch.ones(1)])
    with pytest.raises(ProbeError, match=r"rounding of 0\.48: convert"):
        basin_radius(far)
    with pytest.raises(ProbeError, match="the loss is nan"):
        basin_radius(Objective(Vector(torch.ones(2)), lambda model, x: model.theta.sum() * math.nan, [torch.ones(1)]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"rise": 0.0}, "rise"), ({"draws": 4}, "draws"), ({"rel": 1.0}, "rel"), ({"rise": math.nan}, "rise")],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        basin_radius(descending(1.0), **wrong)


@pytest.mark.parametrize("sigmas", [[], [0.0], [-1.0], [math.inf]])
def test_noise_levels_must_be_positive(sigmas: list[float]) -> None:
    with pytest.raises(ProbeError, match="sigmas must be positive"):
        noise_curve(descending(1.0), sigmas)
