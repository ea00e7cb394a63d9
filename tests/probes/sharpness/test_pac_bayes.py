"""PAC-Bayes sigma: closed forms, coverage over seeds, the scale of the weights, and what has no sigma."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from helpers import Vector, gaussian, generator
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.noise import Noise
from lossscope.probes.sharpness.pac_bayes import pac_bayes_sigma

SPECTRA = {"flat": torch.ones(30).double(), "decaying": 1 / torch.arange(1.0, 31.0).double()}


def quadratic(eigenvalues: Tensor, theta: Tensor) -> Objective:
    """Return a loss of curvature `eigenvalues` with its minimum at theta."""
    at = theta.clone()
    return Objective(Vector(theta), lambda m, x: x[0] * (eigenvalues * (m.theta - at) ** 2).sum() / 2, [torch.ones(1)])


def test_on_a_quadratic_it_follows_from_the_draws_in_closed_form() -> None:
    eigenvalues = gaussian(40).exp()
    for seed in (0, 1):
        draw = generator(seed)
        z = torch.stack([torch.randn(40, generator=draw) for _ in range(32)]).double()
        right = math.sqrt(0.2 / float((eigenvalues * z**2).sum(1).mean()))
        found = pac_bayes_sigma(quadratic(eigenvalues, gaussian(40, seed=1)), rel=1e-3, seed=seed)
        assert found.value == pytest.approx(right, rel=1e-3)
        assert found.low < found.value < found.high


def misses(spectrum: str, seeds: range) -> int:
    """Return how many intervals miss the sigma over all noise, sqrt(2 rise / trace)."""
    eigenvalues = SPECTRA[spectrum]
    objective, right = quadratic(eigenvalues, gaussian(30, seed=1)), math.sqrt(0.2 / float(eigenvalues.sum()))
    found = [pac_bayes_sigma(objective, seed=seed) for seed in seeds]
    return sum(not one.low <= right <= one.high for one in found)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_few_intervals_miss(spectrum: str) -> None:
    assert misses(spectrum, range(16)) <= binom.ppf(0.999, 16, 0.06)


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_intervals_cover_in_93_to_98_per_cent_of_seeds(spectrum: str) -> None:
    count = misses(spectrum, range(1000, 2000))
    assert binom.ppf(0.001, 1000, 0.02) <= count <= binom.ppf(0.999, 1000, 0.07)


@pytest.mark.parametrize("rise", [0.01, 0.1, 1.0])
def test_the_mean_rise_there_is_the_one_asked_for(rise: float) -> None:
    x, y = gaussian(60, 4), torch.arange(60) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    objective = Objective(net, CrossEntropy(), [(x, y)])
    found = pac_bayes_sigma(objective, rise=rise, rel=1e-3)
    with objective.evaluating():
        mean = Noise(objective, 32, 0, relative=False).rises(torch.tensor([found.value]).double().numpy()).mean()
    assert mean == pytest.approx(rise, rel=3e-3)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_it_has_the_scale_of_the_weights(factor: float) -> None:
    eigenvalues, theta = SPECTRA["flat"], gaussian(30, seed=1)
    before = pac_bayes_sigma(quadratic(eigenvalues, theta), rel=1e-4)
    after = pac_bayes_sigma(quadratic(eigenvalues / factor**2, factor * theta), rel=1e-4)
    assert after.value == pytest.approx(factor * before.value, rel=1e-3)
    assert after.low == pytest.approx(factor * before.low, rel=1e-2)


def test_weights_of_zero_move() -> None:
    found = pac_bayes_sigma(quadratic(SPECTRA["flat"], torch.zeros(30).double()))
    assert found.low < math.sqrt(0.2 / 30) < found.high


def test_a_sigma_out_of_range_is_missing() -> None:
    with pytest.raises(ProbeError, match=r"rises by .* at noise of 0\.0001 already, .* no radius down to 0\.0001"):
        pac_bayes_sigma(quadratic(torch.full((4,), 1e12).double(), torch.ones(4).double()))
    falling = Objective(Vector(torch.ones(5)), lambda m, x: -x[0] * m.theta.square().sum(), [torch.ones(1)])
    with pytest.raises(ProbeError, match="no radius up to 10"):
        pac_bayes_sigma(falling)
    with pytest.raises(ProbeError, match="rise must be positive"):
        pac_bayes_sigma(falling, rise=0.0)


def test_noise_that_the_dtype_cannot_resolve_is_refused() -> None:
    at = torch.ones(30)
    steep = Objective(
        Vector(at.half()), lambda m, x: 3e3 * (m.theta.float() - at).square().sum() + 0 * x[0], [torch.ones(1)]
    )
    with pytest.raises(ProbeError, match=r"a noise level must be at least 0\.0039 for the dtype"):
        pac_bayes_sigma(steep)
    coarse = Objective(Vector(at.bfloat16()), lambda m, x: x[0] * m.theta.square().sum(), [torch.ones(1)])
    with pytest.raises(ProbeError, match="large beside the rounding of the loss"):
        pac_bayes_sigma(coarse)
