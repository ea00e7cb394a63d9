from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.sampling_error import _cross_fit, _CrossFit, _HalfForms, sampled_eigenvalue
from lossscope.probes.statistics.estimate import exact_estimate
from lossscope.probes.statistics.propagation import independent_seeds

SPECTRUM = (5.0, 2.0, 1.0, 0.5, 0.1)


class Weights(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def inputs(samples: int, seed: int = 0, size: int = 5) -> Tensor:
    x = torch.randn(samples, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.tensor(SPECTRUM[:1] * (size - 5) + SPECTRUM, dtype=torch.float64).sqrt()


def half_square(model: Any, x: Tensor) -> Tensor:
    return (x @ model.w).square().mean() / 2


def least_squares(*batches: Tensor) -> Objective:
    """Return a loss whose Hessian is the mean of x x'; that of the population is the covariance."""
    return Objective(Weights(batches[0].shape[1]), half_square, batches)


def covariance(x: Tensor) -> Tensor:
    return x.mT @ x / len(x)


def top(A: Tensor) -> tuple[float, Tensor]:
    values, vectors = torch.linalg.eigh(A)
    return float(values[-1]), vectors[:, -1]


def test_each_half_is_judged_by_the_vector_of_the_other() -> None:
    x = inputs(37)
    found = sampled_eigenvalue(least_squares(x), parts=8, rel=1e-6, seed=3)
    shuffle = independent_seeds(3, 1)[0]
    A, B = (half.data.batches[0] for half in least_squares(x).split(2, seed=shuffle))
    assert sorted(torch.cat([A, B])[:, 0].tolist()) == sorted(x[:, 0].tolist())
    a, b = top(covariance(A))[1], top(covariance(B))[1]
    assert found.in_sample.value == pytest.approx(top(covariance(x))[0], rel=1e-12)
    expected = (float((A @ b).square().sum()) + float((B @ a).square().sum())) / 37
    assert found.cross_fitted.value == pytest.approx(expected, rel=1e-9)
    assert found.alignment == pytest.approx(float(a @ b) ** 2, rel=1e-9)
    assert found.cross_fitted.value < found.population.value < found.in_sample.value
    assert (found.cross_fitted.bound, found.cross_fitted.samples, found.parts) == ("standard error", 8, 8)


def test_the_standard_error_is_that_of_the_spread_over_samples() -> None:
    # (v'x)^2 has the variance 2 lambda^2, estimated by parts of any size
    for parts in (32, 128):
        found = sampled_eigenvalue(least_squares(inputs(2048)), parts=parts)
        assert found.cross_fitted.stderr == pytest.approx(5 * math.sqrt(2 / 2048), rel=0.25)
        assert found.population.stderr == pytest.approx(found.cross_fitted.stderr, rel=0.2)
        assert found.alignment == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("seeds", [16, pytest.param(80, marks=pytest.mark.slow)])
def test_the_eigenvalue_of_the_population_is_covered_and_held_between_in_the_mean(seeds: int) -> None:
    found = [sampled_eigenvalue(least_squares(inputs(100, seed)), parts=8, seed=seed) for seed in range(seeds)]
    assert sum(s.population.low <= 5 <= s.population.high for s in found) >= binom.ppf(0.001, seeds, 0.95)
    gaps = np.array([s.in_sample.value - s.cross_fitted.value for s in found])
    b = sum(5 * other / (5 - other) for other in SPECTRUM[1:]) / 100
    assert gaps.mean() == pytest.approx(3 * b, abs=3 * gaps.std() / math.sqrt(seeds))
    assert gaps.mean() > 3 * gaps.std() / math.sqrt(seeds)


def test_the_bottom_end_is_the_top_of_the_negative_loss() -> None:
    x = inputs(64)
    up = sampled_eigenvalue(least_squares(x), parts=8)
    down = sampled_eigenvalue(Objective(Weights(5), lambda m, x: -half_square(m, x), [x]), end="bottom", parts=8)
    for one, other in (
        (up.in_sample, down.in_sample),
        (up.cross_fitted, down.cross_fitted),
        (up.population, down.population),
    ):
        assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low), rel=1e-9)


def test_it_does_not_matter_in_which_batches_the_samples_come() -> None:
    x = inputs(48)
    whole = sampled_eigenvalue(least_squares(x), parts=8)
    for batches in (x.split(1), x.split([5, 30, 13])):
        cut = sampled_eigenvalue(least_squares(*batches), parts=8)
        assert cut.cross_fitted.value == pytest.approx(whole.cross_fitted.value, rel=1e-9)
        assert cut.cross_fitted.stderr == pytest.approx(whole.cross_fitted.stderr, rel=1e-9)


def test_parts_count_by_the_terms_of_the_loss() -> None:
    x = inputs(40)
    mask = (torch.arange(40) % 3 != 0).double()  # every third sample has no term

    def masked(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return ((batch[0] @ model.w).square() * batch[1]).sum() / batch[1].sum() / 2

    objective = Objective(Weights(5), masked, [(x, mask)], count=lambda batch: float(batch[1].sum()))
    found = sampled_eigenvalue(objective, parts=4)
    assert found.in_sample.value == pytest.approx(top(covariance(x[mask > 0]))[0], rel=1e-9)
    with pytest.raises(ProbeError, match=r"the loss must be a mean over samples .* nor is a wrong count"):
        sampled_eigenvalue(Objective(Weights(5), masked, [(x, mask.cumsum(0))]), parts=4)


def test_the_mean_of_a_network_over_its_parts_is_checked() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batches = [(x, torch.arange(60) % 3)]
    found = sampled_eigenvalue(Objective(net, CrossEntropy(), batches), parts=6)
    assert found.cross_fitted.low < found.population.value < found.in_sample.value
    assert found.products < 100
    with pytest.raises(
        ProbeError, match=r"as the mean over 2 parts: the loss must be a mean over samples \(batch norm"
    ):
        sampled_eigenvalue(Objective(net, CrossEntropy(), batches, mode="frozen"), parts=6)


def test_a_budget_that_ends_too_early_is_told() -> None:
    found = sampled_eigenvalue(least_squares(inputs(100, size=60)), parts=4, rel=1e-6, max_products=5)
    assert not found.in_sample.converged
    assert not found.cross_fitted.converged
    assert not found.population.converged


@pytest.mark.parametrize("parts", [2, 7, 0])
def test_parts_that_make_no_halves_are_refused(parts: int) -> None:
    with pytest.raises(ProbeError, match=rf"parts must be even and at least 4, got {parts}"):
        sampled_eigenvalue(least_squares(inputs(40)), parts=parts)


def test_data_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ProbeError, match=r"two halves with parts=32 in total: .* samples, 10, got 16"):
        sampled_eigenvalue(least_squares(inputs(20)))
    with pytest.raises(ProbeError, match=r"cannot be split into two halves with parts=32 .* samples, 1, got 2"):
        sampled_eigenvalue(least_squares(inputs(1)))
    batch = {"seed": 3}
    with pytest.raises(ProbeError, match=r"cannot be split .* has no tensor with a length"):
        sampled_eigenvalue(Objective(Weights(5), lambda m, _: m.w.square().sum(), [batch], count=lambda _: 4))
    with pytest.raises(ProbeError, match=r"end must be one of .*, got 'left'"):
        sampled_eigenvalue(least_squares(inputs(40)), end="left")  # type: ignore[arg-type]


SEEDS = 600
GAP = (5.0, 2.0, 1.0, 0.5, 0.1)
CLOSE = (2.0, 1.8, 1.5, 1.0, 1.0)
NONE = (1.0,) * 5


@dataclass(frozen=True)
class Draw:
    fit: _CrossFit
    eigenvalue: float  # eigenvalue of all the data
    target: float  # mean of the population's Rayleigh quotients of both halves' eigenvectors
    noise: float  # v'(H_data - H)v for the population's eigenvector v, with mean zero


@functools.cache
def draws(
    spectrum: tuple[float, ...], samples: int = 192, *, tail: int = 0, independent: bool = False
) -> tuple[Draw, ...]:
    """Return the estimates of least squares with inputs of this covariance and 32 parts, one per seed."""
    rng = np.random.default_rng(0)
    scale = np.array(spectrum)
    found = []
    for _ in range(SEEDS):
        x = rng.standard_normal((samples, len(scale)))
        if tail:  # Student's t with unit variance
            x *= np.sqrt((tail - 2) / rng.chisquare(tail, (samples, 1)))
        x = (x * np.sqrt(scale)).reshape(32, samples // 32, -1)
        H = x.swapaxes(1, 2) @ x * (32 / samples)
        values, vectors = np.linalg.eigh(np.stack([H.mean(0), H[:16].mean(0), H[16:].mean(0)]))
        v, a, b = vectors[:, :, -1]
        halves = [
            _HalfForms((part @ v) @ v, (part @ other) @ other, np.full(16, samples / 32))
            for part, other in ((H[:16], b), (H[16:], a))
        ]
        fit = _cross_fit(exact_estimate(values[0, -1]), halves, 1.0 if independent else float(a @ b) ** 2, "top")
        noise = float(H.mean(0)[0, 0] - scale[0])
        found.append(Draw(fit, float(values[0, -1]), float((scale * (a**2 + b**2)).sum() / 2), noise))
    return tuple(found)


def coverage(found: tuple[Draw, ...]) -> float:
    return sum(d.fit.cross_fitted.low <= d.target <= d.fit.cross_fitted.high for d in found) / SEEDS


def mean(numbers: list[float]) -> tuple[float, float]:
    return float(np.mean(numbers)), float(np.std(numbers)) / math.sqrt(SEEDS)


@pytest.mark.parametrize("samples", [192, 768])
def test_the_interval_covers_the_rayleigh_quotient_where_there_is_a_gap(samples: int) -> None:
    assert 0.93 <= coverage(draws(GAP, samples)) <= 0.98


def test_it_covers_with_heavy_tails_once_a_part_has_some_samples() -> None:
    assert 0.93 <= coverage(draws(GAP, 768, tail=5)) <= 0.98


@pytest.mark.parametrize("spectrum", [CLOSE, NONE])
def test_it_is_cautious_where_the_data_do_not_settle_the_eigenvector(spectrum: tuple[float, ...]) -> None:
    assert 0.94 <= coverage(draws(spectrum)) <= 0.99


def test_halves_taken_for_independent_would_cover_too_seldom_there() -> None:
    assert coverage(draws(NONE, independent=True)) < 0.93 < coverage(draws(NONE))


@pytest.mark.parametrize("spectrum", [GAP, CLOSE, NONE])
def test_the_interval_of_the_population_covers_its_eigenvalue(spectrum: tuple[float, ...]) -> None:
    found = [d.fit.population for d in draws(spectrum)]
    assert sum(p.low <= spectrum[0] <= p.high for p in found) >= 0.94 * SEEDS
    assert all(p.low <= p.value <= p.high for p in found)


@pytest.mark.parametrize("spectrum", [GAP, CLOSE, NONE])
def test_the_eigenvalue_of_the_population_lies_between_both_values_in_the_mean(spectrum: tuple[float, ...]) -> None:
    found = draws(spectrum)
    inner, unsure = mean([d.fit.cross_fitted.value - d.target for d in found])
    assert abs(inner) < 3 * unsure
    assert mean([d.target for d in found])[0] < spectrum[0] + 1e-12
    outer, unsure = mean([d.eigenvalue - d.noise for d in found])
    assert outer - 3 * unsure > spectrum[0]


@pytest.mark.parametrize("samples", [192, 768])
def test_the_biases_are_those_of_second_order_shrink_with_the_data_and_cancel(samples: int) -> None:
    found, top, rest = draws(GAP, samples), GAP[0], np.array(GAP[1:])
    b = float((top * rest / (top - rest)).sum()) / samples
    outer, _ = mean([d.eigenvalue - d.noise - top for d in found])
    inner, _ = mean([d.target - top for d in found])
    assert outer == pytest.approx(b, rel=0.15)
    assert inner == pytest.approx(-2 * b, rel=0.15)
    assert abs(2 * outer + inner) / 3 < 0.1 * b


def test_the_bottom_of_a_matrix_is_the_top_of_its_negative() -> None:
    rng = np.random.default_rng(1)
    forms = [[rng.standard_normal((2, 8)) + 3, rng.uniform(1, 2, 8)] for _ in range(2)]
    top = _cross_fit(exact_estimate(3.5), [_HalfForms(*x, n) for x, n in forms], 0.9, "top")
    bottom = _cross_fit(exact_estimate(-3.5), [_HalfForms(*-x, n) for x, n in forms], 0.9, "bottom")
    for one, other in zip(vars(top).values(), vars(bottom).values(), strict=True):
        assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low), rel=1e-12)
        assert other.stderr == pytest.approx(one.stderr, rel=1e-12)


def test_parts_count_by_their_terms() -> None:
    forms, counts = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 5.0])
    found = _cross_fit(exact_estimate(3.0), [_HalfForms(forms, forms, counts)] * 2, 1.0, "top")
    assert found.cross_fitted.value == found.in_sample.value == pytest.approx(25 / 8)
    even = _cross_fit(exact_estimate(3.0), [_HalfForms(forms, forms, np.ones(3))] * 2, 1.0, "top")
    assert even.cross_fitted.stderr == pytest.approx(np.std(forms) * math.sqrt(6 / 4) / math.sqrt(6))
