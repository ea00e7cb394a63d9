from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from helpers import gaussian, generator
from lossscope.probes.eigenvalues.block_krylov import Array, BlockKrylov
from lossscope.probes.eigenvalues.density import SpectralDensity, spectral_density
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.ritz import ritz
from lossscope.probes.eigenvalues.start_block import start_block
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator, from_matrix
from lossscope.probes.statistics.estimate import Estimate


def diagonal(values: Array) -> SymmetricOperator:
    """Return a diagonal operator; as the start is Gaussian, it represents all matrices with its eigenvalues."""
    d = torch.from_numpy(np.asarray(values, dtype=np.float64))[:, None]
    return SymmetricOperator(len(d), lambda V: d * V, dtype=torch.float64, device=torch.device("cpu"))


def density_of(values: Array, *, budget: int = 200, seed: int = 0) -> SpectralDensity:
    found = measure_spectrum(diagonal(values), quantities=("density",), max_products=budget, seed=seed).density
    assert found is not None
    return found


def everything(values: Array, seed: int = 0, budget: int = 120) -> SpectralDensity:
    found = measure_spectrum(diagonal(values), rel=0.05, top=2, max_products=budget, seed=seed).density
    assert found is not None
    return found


def moments_of_the_start(A: Tensor, start: Tensor, steps: int) -> list[Array]:
    """Return the moments x' A^k x of normalized start vectors by multiplication, k up to 2 steps + 1."""
    x = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    found, image = [], x
    for _ in range(2 * steps + 2):
        found.append((x * image).sum(1).numpy())
        image = image @ A
    return found


def quadrature(A: Tensor, width: int, steps: int) -> tuple[list[Array], list[Array]]:
    """Return the moments by quadrature and the true moments of the same vectors."""
    vectors = gaussian(width, len(A), seed=3)
    space = BlockKrylov(from_matrix(A), vectors, generator())
    for _ in range(steps):
        space.step(width)
    found = ritz(space, space.start)
    return [found.weights @ found.values**k for k in range(2 * steps + 2)], moments_of_the_start(A, vectors, steps)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_quadrature_is_exact_up_to_twice_the_steps_less_one(width: int, steps: int) -> None:
    Q, _ = torch.linalg.qr(gaussian(60, 60))
    A = (Q * torch.linspace(-1, 1.2, 60).double()) @ Q.mT
    found, true = quadrature((A + A.mT) / 2, width, steps)
    for k in range(2 * steps):
        np.testing.assert_allclose(found[k], true[k], rtol=0, atol=1e-13)
    assert np.abs(found[2 * steps] - true[2 * steps]).max() > 1e-6  # one power further it is not


def test_the_weights_of_each_vector_sum_to_one_also_with_a_warm_start_and_a_cut_block() -> None:
    values = np.r_[9.0, 4.0, np.linspace(-1, 1, 98)]
    warm = torch.zeros(100)
    warm[0] = 1
    for budget in (9, 16, 33):
        found = measure_spectrum(
            diagonal(values), quantities=("density",), max_products=budget, warm_start=warm
        ).density
        assert found is not None
        assert found.weights.shape == (2, len(found.nodes))
        np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-10)
        assert (found.weights >= 0).all()
        assert found.shares.sum() == pytest.approx(1)
        assert found.nodes.dtype == found.weights.dtype == "float64"
        assert (np.diff(found.nodes) >= 0).all()
        assert found.size == 100


def test_a_warm_start_leaves_the_density_unbiased() -> None:
    """Four fifths of the start would be the top vector; its quadrature must not weigh more than 1/n for that."""
    values = np.r_[5.0, 0.1 * np.linspace(-1, 1, 299)]
    warm = torch.zeros(300)
    warm[0] = 1
    seen = []
    for seed in range(30):
        found = measure_spectrum(
            diagonal(values), quantities=("density",), max_products=20, warm_start=warm, seed=seed
        ).density
        assert found is not None
        seen.append(found.weights[:, -1].mean())
    assert np.mean(seen) == pytest.approx(1 / 300, rel=0.7)


def test_small_matrices_have_exact_numbers() -> None:
    found = density_of(np.array([4.0, 1.0, -1.0]))
    mass = found.negative_mass
    assert (mass.value, mass.stderr, mass.low, mass.high) == pytest.approx((1 / 6, 0, 1 / 6, 1 / 6), rel=1e-12)
    assert mass.bound == "exact"
    assert found.participation_ratio.value == pytest.approx(25 / 17, rel=1e-12)
    p = np.array([0.8, 0.2])
    assert found.effective_rank.value == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert found.effective_parameters(0.5).value == pytest.approx(4 / 4.5 + 1 / 1.5, rel=1e-12)
    assert found.condition(0.5).value == pytest.approx(4)
    assert found.condition(0.99).value == pytest.approx(1)
    assert found.settled.all()


@pytest.mark.parametrize("r", [1, 3, 20])
def test_a_matrix_of_r_ones_has_rank_r_in_every_sense(r: int) -> None:
    small = density_of(np.r_[np.ones(r), np.zeros(24 - r)])
    assert small.participation_ratio.value == pytest.approx(r, rel=1e-12)
    assert small.effective_rank.value == pytest.approx(r, rel=1e-12)
    assert small.effective_parameters(0.5).value == pytest.approx(r / 1.5, rel=1e-12)
    assert small.negative_mass.value == 0
    covered = 0
    for seed in range(100):
        large = density_of(np.r_[np.ones(r), np.zeros(500 - r)], seed=seed)
        for estimate, true in (
            (large.participation_ratio, r),
            (large.effective_rank, r),
            (large.effective_parameters(0.25), r / 1.25),
        ):
            covered += within(estimate, true)
        assert large.negative_mass.value == 0
    assert covered >= 270


def within(estimate: Estimate, true: float) -> bool:
    """Nothing is claimed from above where `high` is nan."""
    return estimate.low - 1e-9 * abs(true) <= true and not true > estimate.high + 1e-9 * abs(true)


_RANDOM = np.random.default_rng(1)
SPECTRA: dict[str, Array] = {
    "cubic": np.linspace(-1, 1, 100) ** 3 + 0.1,
    "outlier and bulk": np.r_[8.0, _RANDOM.standard_normal(199)],
    "two outliers and bulk": np.r_[9.0, -5.0, 0.5 * _RANDOM.standard_normal(298)],
    "positive": np.r_[5.0, _RANDOM.random(199)],
}


def true_numbers(values: Array, alpha: float) -> dict[str, float]:
    plus = np.maximum(values, 0)
    p = plus[plus > 0] / plus.sum()
    zone = 1e-3 * np.abs(values).max()
    return {
        "negative mass": float(np.abs(values[values < -zone]).sum() / np.abs(values).sum()),
        "participation ratio": float(1 / (p**2).sum()),
        "effective rank": float(np.exp(-(p * np.log(p)).sum())),
        "effective parameters": float((plus / (plus + alpha)).sum()),
        "condition": float(values.max() / np.quantile(np.abs(values), 0.5, method="inverted_cdf")),
    }


def numbers(found: SpectralDensity, alpha: float) -> dict[str, Estimate]:
    return {
        "negative mass": found.negative_mass,
        "participation ratio": found.participation_ratio,
        "effective rank": found.effective_rank,
        "effective parameters": found.effective_parameters(alpha),
        "condition": found.condition(0.5),
    }


def uncovered(values: Array, seeds: int, least: int) -> dict[str, tuple[int, int]]:
    """Measure with many seeds, the density alone and in a panel; what has converged must cover in 93 % of them.

    Returns the numbers of covering and of converged estimates, for each kind that covers too seldom or converged less
    often than the test needs.

    Args:
        values: The eigenvalues.
        seeds: Number of seeds.
        least: Number of converged estimates that the test needs, of both ways together.
    """
    alpha = 0.1 * float(np.abs(values).max())
    true = true_numbers(values, alpha)
    converged, covered = dict.fromkeys(true, 0), dict.fromkeys(true, 0)
    for seed in range(seeds):
        for found in (density_of(values, seed=seed), everything(values, seed)):
            for key, estimate in numbers(found, alpha).items():
                converged[key] += estimate.converged
                covered[key] += estimate.converged and within(estimate, true[key])
    rare = [key for key, count in converged.items() if count < least and key != "condition"]
    missed = [key for key, count in converged.items() if covered[key] < binom.ppf(0.001, count, 0.93)]
    return {key: (covered[key], converged[key]) for key in (*rare, *missed)}


@pytest.mark.parametrize("name", SPECTRA)
def test_intervals_cover_in_93_of_100_seeds_where_the_number_has_converged(name: str) -> None:
    assert not uncovered(SPECTRA[name], 25, 11)


def of_a_network() -> Array:
    """Return eigenvalues as of a classifier: ten outliers, a bulk that decays exponentially, and negative ones."""
    up, down = 0.2 * np.exp(-np.arange(450) / 25.0), -0.05 * np.exp(-np.arange(140) / 15.0)
    return np.r_[np.geomspace(10, 0.3, 10), up, down]


HARD = {
    "power 0.5": np.arange(1, 601) ** -0.5,
    "power 1": 1.0 / np.arange(1, 601),
    "power 2": np.arange(1, 601) ** -2.0,
    "clustered": np.repeat([1.0, 0.1, 0.01], [50, 150, 400]),
    "outliers": np.r_[np.linspace(5, 10, 9), 0.02 * np.random.default_rng(0).standard_normal(591)],
    "network": of_a_network(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD)
def test_intervals_cover_in_93_of_100_of_a_thousand_seeds_on_hard_spectra(name: str) -> None:
    assert not uncovered(HARD[name], 1000, 100)


def test_one_number_that_agrees_by_chance_has_not_converged() -> None:
    values = of_a_network()
    for seed in range(10):
        found = everything(values, seed, 64)
        if not found.converged:
            assert not any(one.converged for one in numbers(found, 0.01).values())
    assert not everything(values, 0, 64).converged


def test_a_number_that_the_second_half_of_the_steps_has_moved_has_not_converged() -> None:
    values = np.r_[10 * 0.7 ** np.arange(30), -8 * 0.75 ** np.arange(30), np.zeros(240)]
    early = density_of(values, budget=5)
    assert not early.negative_mass.converged
    moved = abs(early.negative_mass.value - early.half.negative_mass.value)
    assert early.negative_mass.high - early.negative_mass.low > 2 * moved  # it is in the interval too
    late = density_of(values, budget=250)
    assert late.negative_mass.converged
    assert late.negative_mass.high - late.negative_mass.low < 0.15
    true = float(-values[values < -0.01].sum() / np.abs(values).sum())  # another test checks the interval's coverage
    assert abs(late.negative_mass.value - true) < 0.1


def test_without_the_two_halves_nothing_is_said_to_have_converged() -> None:
    found = density_of(SPECTRA["cubic"])
    assert found.half is not None
    assert not found.half.negative_mass.converged


def test_moments_agree_with_trace_and_norm() -> None:
    for name, values in SPECTRA.items():
        found = measure_spectrum(diagonal(values), rel=0.02, max_products=90, seed=1)
        assert found.trace is not None
        assert found.frobenius is not None
        density = found.density
        assert density is not None
        first, first_error = density._sum(density.nodes)[0], density._error(density.nodes)
        second, second_error = density._sum(density.nodes**2)[0], density._error(density.nodes**2)
        assert abs(first - found.trace.value) <= 4 * math.hypot(first_error, found.trace.stderr), name
        square_error = 2 * found.frobenius.value * found.frobenius.stderr
        assert abs(second - found.frobenius.value**2) <= 4 * math.hypot(second_error, square_error) + 1e-9, name


def test_the_stated_standard_error_is_the_spread_over_seeds() -> None:
    values = SPECTRA["positive"]
    found = [density_of(values, seed=seed) for seed in range(50)]
    parameters = [d.effective_parameters(0.3) for d in found]
    spread = float(np.std([e.value for e in parameters]))
    assert np.mean([e.stderr for e in parameters]) == pytest.approx(spread, rel=0.3)
    assert np.mean([e.value for e in parameters]) == pytest.approx(
        true_numbers(values, 0.3)["effective parameters"], abs=4 * spread / math.sqrt(50)
    )


def test_settled_values_are_single_eigenvalues_and_count_exactly_once() -> None:
    values = np.r_[9.0, -5.0, 0.1 * _RANDOM.standard_normal(298)]
    outer = 0
    for seed in range(20):
        found = everything(values, seed)
        known = found.nodes[found.settled]
        nearest = np.abs(known[:, None] - values).argmin(1)
        assert len(set(nearest)) == len(known)
        np.testing.assert_allclose(known, values[nearest], atol=0.02)
        np.testing.assert_array_equal(found.shares[found.settled], 1 / 300)
        outer += bool(found.settled[[0, -1]].all())
    assert outer == 20
    assert abs(found.weights[:, -1].mean() * 300 - 1) > 0.05  # chance alone would have said another share


@pytest.mark.parametrize("width", [1, 2])
def test_an_eigenvalue_of_many_copies_is_not_counted_as_one(width: int) -> None:
    values, shares = np.r_[np.full(60, 9.0), 0.1 * np.linspace(-1, 1, 240)], []
    for seed in range(20):
        start = start_block(diagonal(values), width, None, generator(seed))
        while start.space.dimension < 8:
            start.space.step(width)
        found = spectral_density(ritz(start.space, start.random), None, 300)
        shares.append(float(found.shares[found.nodes > 5].sum()))
    assert np.mean(shares) == pytest.approx(60 / 300, rel=0.15)


def test_the_curve_integrates_to_one_and_its_band_covers() -> None:
    values, width = SPECTRA["outlier and bulk"], 0.4
    grid = np.linspace(-8, 12, 1001)
    bumps = np.exp(-(((grid[:, None] - values) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
    true, covered = bumps.mean(1), []
    shown = (grid > -2) & (grid < 2)
    for seed in range(40):
        mean, low, high = density_of(values, seed=seed).curve(grid, width)
        assert mean.shape == low.shape == high.shape == grid.shape
        assert np.trapezoid(mean, grid) == pytest.approx(1, abs=1e-6)
        assert (low >= 0).all()
        assert (low <= mean).all()
        assert (mean <= high).all()
        covered.append(((low <= true) & (true <= high))[shown].mean())
    assert np.mean(covered) > 0.9
    with pytest.raises(ProbeError, match="width must be positive, such as 1 % of lambda_max, got 0"):
        density_of(values).curve(grid, 0)


def test_of_an_exact_density_the_band_has_no_width() -> None:
    values = np.array([4.0, 1.0, -1.0])
    grid = np.linspace(-3, 6, 50)
    mean, low, high = density_of(values).curve(grid, 0.5)
    expected = np.exp(-(((grid[:, None] - values) / 0.5) ** 2) / 2).mean(1) / (0.5 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(mean, expected, rtol=1e-10)
    np.testing.assert_allclose(low, mean)
    np.testing.assert_allclose(high, mean)


def test_the_condition_is_over_a_quantile_of_the_absolute_values() -> None:
    values = np.r_[8.0, np.linspace(-1, 2, 20)]
    found = density_of(values)
    sizes = np.sort(np.abs(values))
    for quantile in (0.1, 0.5, 0.9):
        expected = 8 / sizes[math.ceil(quantile * 21 - 1e-9) - 1]
        assert found.condition(quantile).value == pytest.approx(expected, rel=1e-9)
    assert math.isnan(density_of(np.r_[5.0, np.zeros(20)]).condition(0.5).value)  # nan: the median is zero
    sampled = density_of(SPECTRA["positive"])
    conditions = [sampled.condition(q) for q in (0.25, 0.5, 0.75)]
    assert [c.value for c in conditions] == sorted((c.value for c in conditions), reverse=True)
    assert all(c.low < c.value < c.high for c in conditions)
    assert math.isnan(sampled.condition(0.01).high)  # below the smallest node: nothing is known from above
    assert not sampled.condition(0.01).converged
    with pytest.raises(ProbeError, match="quantile must be between 0 and 1, got 1"):
        found.condition(1)
    with pytest.raises(ProbeError, match="alpha must be a positive prior precision, got 0"):
        found.effective_parameters(0)


def test_a_matrix_of_zeros_has_missing_values_only() -> None:
    for n in (5, 100):
        found = density_of(np.zeros(n))
        for estimate in (found.negative_mass, found.participation_ratio, found.effective_rank, found.condition(0.5)):
            assert math.isnan(estimate.value)
            assert not estimate.converged
        assert found.effective_parameters(1).value == 0


def test_a_scale_changes_no_ratio() -> None:
    values = SPECTRA["two outliers and bulk"]
    plain, scaled = density_of(values), density_of(1000 * values)
    for key, estimate in numbers(plain, 0.5).items():
        other = numbers(scaled, 500)[key]
        assert (other.value, other.low, other.high) == pytest.approx((estimate.value, estimate.low, estimate.high))


POSSIBLE: dict[str, tuple[float, float]] = {  # over n, but for the mass
    "negative mass": (0.0, 1.0),
    "participation ratio": (1.0, 100.0),
    "effective rank": (1.0, 100.0),
    "effective parameters": (0.0, 100.0),
}
NARROW: dict[str, Array] = {  # spectra whose numbers lie at an end of their range
    "one positive value": np.r_[1e-3, -np.linspace(0.5, 1, 99)],
    "nearly positive": np.r_[-0.02, np.linspace(0.5, 1, 99)],
    "nearly negative": np.r_[0.02, -np.linspace(0.5, 1, 99)],
    "flat": np.linspace(0.99, 1.01, 100),
    "one large value": np.r_[50.0, np.linspace(-0.01, 0.01, 99)],
}


@pytest.mark.parametrize("name", NARROW)
def test_no_number_and_no_interval_leaves_its_range(name: str) -> None:
    for seed in range(8):
        for budget in (4, 6, 40):
            density = density_of(NARROW[name], budget=budget, seed=seed)
            found = numbers(density, 0.05)
            for key, (least, most) in POSSIBLE.items():
                one = found[key]
                if math.isnan(one.value):  # there was no positive Ritz value
                    continue
                assert least <= one.low <= one.value <= one.high <= most, key
                assert one.stderr >= 0
            ratio = found["condition"]
            least = float(density.nodes[-1] / np.abs(density.nodes).max())  # over the largest of all
            if least > 0 and not math.isnan(ratio.value):
                assert least <= ratio.low <= ratio.value
                assert ratio.value <= ratio.high or math.isnan(ratio.high)


def test_the_condition_of_a_negative_definite_matrix_has_its_ends_in_order() -> None:
    for seed in range(5):
        found = density_of(-np.r_[5.0, 0.5 + _RANDOM.random(199)], seed=seed).condition(0.5)
        assert found.value < 0
        assert found.low <= found.value <= found.high


FEW_BELOW = np.concatenate([np.full(8, -5.0), np.linspace(0, 100, 392)])


def test_no_negative_mass_counts_as_converged_only_where_none_is_possible() -> None:
    true = 40 / np.abs(FEW_BELOW).sum()
    for seed in range(20):
        start = start_block(diagonal(FEW_BELOW), 2, None, generator(seed))
        for _ in range(4):
            start.space.step(2)
        early = spectral_density(ritz(start.space, start.random), None, 400).negative_mass
        assert early.high >= true
        assert not early.converged
    few = np.concatenate([np.full(8, -1.0), np.linspace(0, 100, 392)])  # within the noise of an early Ritz value
    for seed in range(20):
        late = density_of(few, seed=seed).negative_mass
        assert not late.converged or late.high >= 8 / np.abs(few).sum()
    surely = density_of(np.linspace(10, 100, 400)).negative_mass
    assert (surely.value, surely.low, surely.high, surely.converged) == (0, 0, 0, True)


def test_asked_for_alone_the_density_goes_on_until_its_numbers_stand_still_or_the_budget_is_spent() -> None:
    true, covered = 40 / np.abs(FEW_BELOW).sum(), 0
    for seed in range(20):
        mass = density_of(FEW_BELOW, seed=seed).negative_mass
        assert mass.converged
        covered += mass.low <= true <= mass.high
    assert covered >= 18
    found = measure_spectrum(diagonal(FEW_BELOW), quantities=("density",), max_products=18)
    assert found.products == 18
    assert found.unmet == ("density",)
