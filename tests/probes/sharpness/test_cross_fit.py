from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from lossscope.probes.sharpness.sampling_error import _cross_fit, _CrossFit, _HalfForms
from lossscope.probes.statistics.estimate import exact_estimate

SEEDS = 600
GAP = (5.0, 2.0, 1.0, 0.5, 0.1)
CLOSE = (2.0, 1.8, 1.5, 1.0, 1.0)
NONE = (1.0,) * 5


@dataclass(frozen=True)
class Draw:
    fit: _CrossFit
    eigenvalue: float  # of all the data
    target: float  # the population's Rayleigh quotients of both halves' eigenvectors, in the mean
    noise: float  # v'(H_data - H)v for the population's eigenvector v, of mean zero


@functools.cache
def draws(
    spectrum: tuple[float, ...], samples: int = 192, *, tail: int = 0, independent: bool = False
) -> tuple[Draw, ...]:
    """Least squares with inputs of this covariance, 32 parts, for each seed."""
    rng = np.random.default_rng(0)
    scale = np.array(spectrum)
    found = []
    for _ in range(SEEDS):
        x = rng.standard_normal((samples, len(scale)))
        if tail:  # Student's t, of unit variance
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
