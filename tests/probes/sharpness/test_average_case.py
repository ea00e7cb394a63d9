"""Average-case sharpness and the low-pass filter: closed forms, coverage over seeds, draws, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from helpers import Vector, gaussian, generator
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.average_case import average_sharpness, low_pass_loss
from lossscope.probes.sharpness.invariant import adaptive_trace
from lossscope.probes.sharpness.step_quality import rounding

SPECTRA = {"flat": torch.ones(30).double(), "decaying": 1 / torch.arange(1.0, 31.0).double()}


def quadratic(eigenvalues: Tensor, theta: Tensor) -> Objective:
    """Return a loss of these curvatures, with a slope at theta."""
    slope = 5 * gaussian(len(theta), seed=9)
    at = theta.clone()
    return Objective(
        Vector(theta),
        lambda m, x: 0.3 + (slope * (m.theta - at)).sum() + x[0] * (eigenvalues * (m.theta - at) ** 2).sum() / 2,
        [torch.ones(1)],
    )


@pytest.mark.parametrize("relative", [True, False])
def test_on_a_quadratic_it_follows_from_the_draws_in_closed_form(*, relative: bool) -> None:
    eigenvalues, theta = gaussian(40).exp(), gaussian(40, seed=1)
    draw = generator(3)
    z = torch.stack([torch.randn(40, generator=draw) for _ in range(32)]).double() * (theta if relative else 1)
    right = 0.2**2 / 2 * float((eigenvalues * z**2).sum(1).mean())  # the slope cancels in each pair
    objective = quadratic(eigenvalues, theta)
    found = average_sharpness(objective, rho=0.2, relative=relative, seed=3)
    assert found.value == pytest.approx(right, rel=1e-9)
    assert found.samples == 32
    if not relative:
        filtered = low_pass_loss(objective, sigma=0.2, seed=3)
        assert (filtered.value, filtered.stderr) == pytest.approx((0.3 + right, found.stderr), rel=1e-9)


def misses(spectrum: str, seeds: range, draws: int) -> tuple[int, int]:
    """Return how many intervals of both means miss the trace, which is theirs over all noise."""
    eigenvalues, theta = SPECTRA[spectrum], gaussian(30, seed=1)
    objective = quadratic(eigenvalues, theta)
    average = 0.1**2 / 2 * float((eigenvalues * theta**2).sum())
    filtered = 0.3 + 0.1**2 / 2 * float(eigenvalues.sum())
    found = [average_sharpness(objective, rho=0.1, draws=draws, seed=seed) for seed in seeds]
    others = [low_pass_loss(objective, sigma=0.1, draws=draws, seed=seed) for seed in seeds]
    return (
        sum(not one.low <= average <= one.high for one in found),
        sum(not one.low <= filtered <= one.high for one in others),
    )


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_few_intervals_miss(spectrum: str) -> None:
    assert max(misses(spectrum, range(30), 16)) <= binom.ppf(0.999, 30, 0.06)


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_intervals_cover_in_93_to_98_per_cent_of_seeds(spectrum: str) -> None:
    for count in misses(spectrum, range(1000, 2000), 32):
        assert binom.ppf(0.001, 1000, 0.02) <= count <= binom.ppf(0.999, 1000, 0.07)


def test_more_draws_narrow_the_interval_by_the_root_of_their_number() -> None:
    objective = quadratic(SPECTRA["flat"], gaussian(30, seed=1))
    few, many = (average_sharpness(objective, draws=draws) for draws in (32, 512))
    assert few.stderr / many.stderr == pytest.approx(4, rel=0.35)


def network(dtype: torch.dtype = torch.float64) -> Objective:
    x, y = gaussian(60, 4).to(dtype), torch.arange(60) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    return Objective(net, CrossEntropy(), [(x[:20], y[:20]), (x[20:], y[20:])])


def test_small_noise_on_a_network_finds_its_adaptive_trace() -> None:
    trace = adaptive_trace(network(), max_products=200).value
    found = average_sharpness(network(), rho=1e-3, draws=400)
    low, high = (2e6 * end for end in (found.low, found.high))
    assert low < trace < high
    assert high - low < 0.3 * trace


def test_what_the_loss_cannot_resolve_has_not_converged() -> None:
    found = average_sharpness(network(torch.float32), rho=1e-4)
    assert not found.converged
    assert "rounding error" in found.cause
    assert found.low < 5e-9 * adaptive_trace(network(), max_products=200).value < found.high


def test_the_interval_contains_the_rounding_of_the_losses() -> None:
    plane = Objective(Vector(torch.ones(4)), lambda m, x: x[0] * m.theta.sum() + 1e4, [torch.ones(1)])
    found = average_sharpness(plane, rho=0.1)  # each pair cancels, up to rounding
    slack = rounding(plane, 1e4)
    assert found.low <= -slack
    assert slack <= found.high
    assert not found.converged


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rho": 0.0}, "rho must be positive"), ({"rho": math.inf}, "rho"), ({"draws": 4}, "draws must be at least 16")],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        average_sharpness(network(), **options)


def test_noise_that_has_no_mean_is_refused() -> None:
    wall = Objective(
        Vector(torch.ones(20)),
        lambda m, x: x[0] * torch.where(m.theta.max() > 1.3, math.inf, m.theta.sum()),
        [torch.ones(1)],
    )
    with pytest.raises(ProbeError, match=r"not finite at \d+ of 64 draws of noise of rho=0\.2"):
        average_sharpness(wall, rho=0.2)
    with pytest.raises(ProbeError, match="all weights are zero"):
        average_sharpness(Objective(Vector(torch.zeros(3)), lambda m, x: m.theta.sum(), [torch.ones(1)]))
    coarse = Objective(Vector(torch.ones(3).bfloat16()), lambda m, x: m.theta.sum(), [torch.ones(1)])
    with pytest.raises(ProbeError, match=r"sigma must be at least 0\.031 for the dtype"):
        low_pass_loss(coarse)
