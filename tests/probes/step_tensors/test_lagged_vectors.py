from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import gaussian
from lossscope.probes.dynamics.direction_memory import (
    LaggedCosines,
    angular_velocity,
    direction_memory,
    memory_difference,
)
from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.estimate import exact_estimate
from lossscope.probes.step_tensors.lagged_vectors import lagged_cosines
from lossscope.probes.step_tensors.shear_geometry import shear

TRUE, CEILING = 0.802, 0.205


def two_batches(turn: float, *, steps: int = 300, size: int = 800, seed: int = 0) -> LaggedCosines:
    """Fixture T8: a unit vector that turns in a plane, with the noise of two batches."""
    angle = turn * torch.arange(steps, dtype=torch.float64)
    signal = torch.zeros(steps, size, dtype=torch.float64)
    signal[:, 0], signal[:, 1] = angle.cos(), angle.sin()
    spread = math.sqrt((1 / CEILING - 1) / size)
    first, second = (signal + spread * gaussian(steps, size, seed=2 * seed + i) for i in (1, 2))
    return lagged_cosines(list(first), list(second), lags=(1, 2))


def test_the_two_batch_noise_model_is_seen_through() -> None:
    found = direction_memory(two_batches(math.acos(TRUE)))
    assert found.ceiling.value == pytest.approx(CEILING, abs=0.005)
    assert found.raw[0].value == pytest.approx(TRUE * CEILING, abs=0.005)
    assert found.normalized[0].value == pytest.approx(TRUE, abs=0.015)
    assert found.normalized[1].value == pytest.approx(2 * TRUE**2 - 1, abs=0.025)
    assert found.angular_velocity.value == pytest.approx(math.acos(TRUE), abs=0.03)
    assert found.angular_velocity.low < found.angular_velocity.value < found.angular_velocity.high
    assert (found.half_life, found.null_sd) == (2.0, 1 / math.sqrt(800))


def test_the_intervals_cover_the_true_cosine_and_the_true_difference() -> None:
    inside = apart = 0
    for seed in range(30):
        slow = two_batches(math.acos(TRUE), steps=80, size=60, seed=2 * seed)
        fast = two_batches(1.0, steps=80, size=60, seed=2 * seed + 1)
        found = direction_memory(slow, draws=400, seed=seed).normalized[0]
        inside += found.low <= TRUE <= found.high
        difference = memory_difference(slow, fast, draws=400, seed=seed)[0]
        apart += difference.low <= TRUE - math.cos(1.0) <= difference.high
    assert inside >= 27
    assert apart >= 27


def descent(
    curvature: Tensor, start: Tensor, rate: float, slope: Tensor, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return gradients and shears of gradient descent on a quadratic with a linear term."""
    x, rho = start.clone(), 1e-2
    for _ in range(steps):
        g = curvature * x + slope
        yield g, shear(g + rho * curvature * g / g.norm(), g)
        x = x - rate * g


def of_descent(
    curvature: Tensor, start: Tensor, rate: float, steps: int, lags: tuple[int, ...], slope: Tensor | None = None
) -> tuple[LaggedCosines, LaggedCosines]:
    slope = torch.zeros_like(start) if slope is None else slope
    g, v = zip(*descent(curvature, start, rate, slope, steps), strict=True)
    return lagged_cosines(v, v, lags), lagged_cosines(g, g, lags)


@pytest.mark.parametrize("seed", range(5))
def test_in_two_dimensions_the_shear_turns_as_the_gradient_does(seed: int) -> None:
    curvature = gaussian(2, seed=seed).abs() + 0.1
    v, g = of_descent(curvature, gaussian(2, seed=seed + 50), 0.3, 8, (1, 2, 5))
    assert np.allclose(np.abs(v.values[1:]), np.abs(g.values[1:]), rtol=1e-9, equal_nan=True)


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.5, 0.9])
def test_at_the_edge_the_shear_turns_against_the_gradient(weight: float) -> None:
    a, b = math.sqrt(weight), math.sqrt(1 - weight)
    curvature = torch.tensor([4.0, 0.0], dtype=torch.float64)
    start, slope = torch.tensor([a / 4, 0.0]).double(), torch.tensor([0.0, b]).double()
    v, g = of_descent(curvature, start, 2 / 4, 30, (1, 2), slope)
    shears, gradients = direction_memory(v), direction_memory(g)
    assert shears.normalized[0].value == pytest.approx(2 * weight - 1, abs=1e-6)
    assert gradients.normalized[0].value == pytest.approx(1 - 2 * weight, abs=1e-6)
    assert shears.normalized[1].value == pytest.approx(1, abs=1e-9)
    assert shears.ceiling.value == pytest.approx(1, abs=1e-9)
    assert memory_difference(v, g)[0].value == pytest.approx(4 * weight - 2, abs=1e-6)


def test_stable_descent_turns_the_shear_faster_than_the_gradient() -> None:
    curvature = torch.logspace(-3, 0, 200, dtype=torch.float64)
    v, g = of_descent(curvature, gaussian(200), 1.0, 150, (20, 50))
    shears, gradients = direction_memory(v), direction_memory(g)
    for ours, theirs in zip(shears.normalized, gradients.normalized, strict=True):
        assert ours.value < theirs.value - 0.1
    assert all(difference.high < 0 for difference in memory_difference(v, g, block=5))
    assert np.all((v.values < g.values)[1:][np.isfinite(g.values[1:])])


def test_the_default_block_is_longer_than_the_lag() -> None:
    cosines = two_batches(0.1, steps=60, size=20)
    lagged = LaggedCosines((10,), cosines.values[:2], 20)
    assert not direction_memory(lagged).normalized[0].converged  # six blocks of eleven
    assert direction_memory(lagged, block=6).normalized[0].converged


def windows(turn: float, *, count: int, seed: int, size: int = 200) -> LaggedCosines:
    """Fixture T8 in windows 40 steps apart, every sample with two new batches: no two columns share a vector."""
    generator, spread = np.random.default_rng(seed), math.sqrt((1 / CEILING - 1) / size)
    values = np.full((3, count), math.nan)
    for window in range(count):
        draws = spread * generator.standard_normal((3, 2, size))  # at lag 0, 1 and 5, of two batches
        angle = turn * (40 * window + np.array([0, 1, 5]))
        draws[..., 0] += np.cos(angle)[:, None]
        draws[..., 1] += np.sin(angle)[:, None]
        draws /= np.linalg.norm(draws, axis=2, keepdims=True)
        values[:, window] = ((draws[:, 1] @ draws[0, 0]) + (draws[:, 0] @ draws[0, 1])) / 2
    return LaggedCosines((1, 5), values, size, shared=False)


def test_windows_share_no_vector_so_that_their_blocks_need_not_be_longer_than_the_lag() -> None:
    cosines = windows(0.02, count=20, seed=0)
    joined = replace(cosines, shared=True)
    assert direction_memory(cosines).normalized[1].converged
    assert direction_memory(joined).normalized[1] == direction_memory(cosines, block=6).normalized[1]
    assert not direction_memory(joined).normalized[1].converged  # four blocks of six
    assert memory_difference(cosines, cosines)[1].converged
    assert not memory_difference(cosines, joined)[1].converged


@pytest.mark.parametrize("count", [5, 20])
def test_the_intervals_over_windows_cover_the_true_cosine_and_the_true_difference(count: int) -> None:
    turn, inside, apart = math.acos(TRUE), 0, 0
    for seed in range(60):
        slow, fast = windows(turn, count=count, seed=2 * seed), windows(1.0, count=count, seed=2 * seed + 1)
        found = direction_memory(slow, draws=400, seed=seed).normalized[0]
        inside += found.low <= TRUE <= found.high
        difference = memory_difference(slow, fast, draws=400, seed=seed)[1]
        apart += difference.low <= math.cos(5 * turn) - math.cos(5.0) <= difference.high
    assert inside >= 52
    assert apart >= 52


def test_windows_that_were_cut_short_and_ceilings_that_are_missing_are_gaps() -> None:
    values = np.array([[0.5, math.nan, 0.5], [0.4, 0.3, math.nan], [math.nan, 0.3, math.nan]])
    found = direction_memory(LaggedCosines((1, 5), values, 9, shared=False))
    assert found.raw[0].value == pytest.approx(0.35)
    assert found.normalized[0].value == pytest.approx(0.4 / 0.5)  # from the one window that has both
    assert math.isnan(found.normalized[1].value)
    without = LaggedCosines((1,), np.array([[math.nan] * 2, [0.4, 0.3]]), 9, shared=False)
    assert math.isnan(direction_memory(without).normalized[0].value)


def test_the_ceiling_of_a_lag_is_that_of_its_own_windows() -> None:
    ceilings = np.array([0.2, 0.2, 0.8, 0.8])  # the late windows have more signal, and were cut short
    lagged = np.array([0.1, 0.1, math.nan, math.nan])
    cosines = LaggedCosines((5,), np.stack([ceilings, lagged]), 9, shared=False)
    assert direction_memory(cosines).normalized[0].value == pytest.approx(0.5)
    whole = replace(cosines, values=np.stack([ceilings, ceilings]))
    assert memory_difference(whole, cosines)[0].value == pytest.approx(1 - 0.5)


def test_a_list_of_tensors_is_one_long_vector() -> None:
    whole = list(gaussian(4, 6))
    cut = [[x[:2], x[2:].reshape(2, 2)] for x in whole]
    assert np.allclose(lagged_cosines(cut, cut, (1,)).values, lagged_cosines(whole, whole, (1,)).values, equal_nan=True)
    assert lagged_cosines(cut, cut, (1,)).size == 6


def test_a_cosine_is_taken_across_batches_and_in_both_roles() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert lagged_cosines([a, a, a], [b, b, b], (1,)).values[1, :2].tolist() == [0.0, 0.0]  # constant noise
    assert lagged_cosines([a, a], [a, b], (1,)).values[1, 0] == 0.5


def test_zero_vectors_and_noise_without_a_ceiling_are_gaps() -> None:
    first = [torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])]
    found = lagged_cosines(first, first, (1,))
    assert np.isnan(found.values[1]).tolist() == [True, True, False, True]
    assert direction_memory(found, block=1).raw[0].value == pytest.approx(0.6)
    against = lagged_cosines(first, [-x for x in first], (2,))
    opposed = direction_memory(against, block=1)
    assert opposed.ceiling.value == pytest.approx(-1)
    assert math.isnan(opposed.normalized[0].value)
    assert math.isnan(opposed.half_life)
    assert math.isnan(opposed.angular_velocity.value)


@pytest.mark.parametrize(("value", "angle"), [(-1e170, math.pi), (1e170, 0.0), (0.0, math.pi / 2)])
def test_a_normalized_cosine_of_any_size_has_an_angular_velocity(value: float, angle: float) -> None:
    found = angular_velocity(replace(exact_estimate(value), stderr=0.1))
    assert found.value == angle
    assert found.stderr == pytest.approx(0.1 if value == 0 else math.nan, nan_ok=True)


def test_lags_and_lengths_that_do_not_fit_are_refused() -> None:
    some = list(gaussian(4, 3))
    with pytest.raises(ProbeError, match=r"lags must be from 1 to 3 for 4 steps, got \(4,\)"):
        lagged_cosines(some, some, (4,))
    with pytest.raises(ProbeError, match="lags"):
        lagged_cosines(some, some, (0, 1))
    with pytest.raises(ProbeError, match="got 4 and 3"):
        lagged_cosines(some, some[1:], (1,))
    with pytest.raises(ProbeError, match="measure shears and gradients at the same steps"):
        memory_difference(lagged_cosines(some, some, (1,)), lagged_cosines(some, some, (2,)))
