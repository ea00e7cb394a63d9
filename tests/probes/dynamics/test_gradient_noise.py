from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from lossscope.probes.dynamics.gradient_noise import NoiseScale, noise_scale
from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.block_bootstrap import Array

MEAN = np.array([1.0, -0.5, 0.2, 0.0])
SPREAD = np.array([2.0, 1.0, 0.5, 0.1])  # standard deviations of one sample, by coordinate
TRUE = float((SPREAD**2).sum() / (MEAN**2).sum())


def gradients(size: int, steps: int, generator: np.random.Generator) -> Array:
    """Return squared norms of the mean of `size` samples with mean MEAN and covariance diag(SPREAD^2)."""
    g = MEAN + generator.standard_normal((steps, size, 4)).mean(1) * SPREAD
    return (g * g).sum(1)


def measured(steps: int, seed: int, b: int = 4, B: int = 32) -> NoiseScale:
    generator = np.random.default_rng(seed)
    small, large = gradients(b, steps, generator), gradients(B, steps, generator)
    return noise_scale(small.tolist(), large.tolist(), small_batch=b, large_batch=B, draws=400, seed=seed)


@given(st.floats(0, 100), st.floats(0.01, 100), st.integers(1, 100), st.integers(1, 100))
def test_two_equations_give_their_two_unknowns(noise: float, signal: float, b: int, more: int) -> None:
    B = b + more
    found = noise_scale([signal + noise / b] * 3, [signal + noise / B] * 3, small_batch=b, large_batch=B)
    slack = 1e-9 * B * (signal + noise)
    assert found.signal.value == pytest.approx(signal, abs=slack)
    assert found.noise.value == pytest.approx(noise, abs=slack * b)
    assert found.noise.low == pytest.approx(noise, abs=slack * b)
    if slack * b < 1e-6 * signal:
        assert found.scale.value == pytest.approx(noise / signal, rel=1e-4, abs=1e-4)


def test_gaussian_samples_show_their_trace_over_their_mean() -> None:
    found = measured(20000, 0)
    truths = (TRUE, float(MEAN @ MEAN), float(SPREAD @ SPREAD))
    for estimate, truth in zip((found.scale, found.signal, found.noise), truths, strict=True):
        assert abs(estimate.value - truth) < 3 * estimate.stderr < 0.08 * truth


def test_the_intervals_cover_signal_noise_and_scale() -> None:
    inside = np.zeros(3)
    for seed in range(200):
        found = measured(100, seed)
        truths = (TRUE, float(MEAN @ MEAN), float(SPREAD @ SPREAD))
        estimates = (found.scale, found.signal, found.noise)
        inside += [e.low <= truth <= e.high for e, truth in zip(estimates, truths, strict=True)]
    assert (inside >= 180).all()
    assert (inside < 200).all()


def test_averages_come_before_the_ratio() -> None:
    small, large = [3.0, 9.0], [2.0, 3.0]
    found = noise_scale(small, large, small_batch=1, large_batch=2)
    signal, noise = [1.0, -3.0], [2.0, 12.0]  # by hand: (2 * 2 - 3), (2 * 3 - 9); (3 - 2) / 0.5, (9 - 3) / 0.5
    assert found.signal.value == pytest.approx(sum(signal) / 2)
    assert found.noise.value == pytest.approx(sum(noise) / 2)
    assert math.isnan(found.scale.value)  # the signal is below 0
    found = noise_scale([3.0, 3.0], [2.0, 2.5], small_batch=1, large_batch=2)
    assert found.scale.value == pytest.approx((2 + 1) / (1 + 2))  # a mean of ratios would be (2 + 1 / 2) / 2


def test_steps_that_depend_get_a_wider_interval() -> None:
    generator = np.random.default_rng(0)
    level = np.repeat(generator.uniform(0.5, 2.0, 20), 20)
    small, large = level * gradients(64, 400, generator), level * gradients(512, 400, generator)
    chosen, single = (
        noise_scale(small.tolist(), large.tolist(), small_batch=64, large_batch=512, block=block) for block in (None, 1)
    )
    assert chosen.signal.stderr > 2 * single.signal.stderr
    assert chosen.signal.value == single.signal.value


def test_the_interval_of_the_scale_ends_at_zero_unless_its_value_is_below() -> None:
    level = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95]
    drowned = noise_scale([4.0, 9.0, 1.0, 6.0, 2.0, 8.0], level, small_batch=1, large_batch=8)
    assert (drowned.scale.low, drowned.scale.high > drowned.scale.value) == (0.0, True)
    below = noise_scale([0.9 * x for x in level], level, small_batch=1, large_batch=2)
    assert below.scale.low <= below.scale.value < 0


def test_a_signal_that_drowns_leaves_the_scale_open() -> None:
    generator = np.random.default_rng(1)
    noise = [generator.standard_normal((60, size, 50)).mean(1) for size in (2, 16)]
    small, large = ((g * g).sum(1).tolist() for g in noise)
    found = noise_scale(small, large, small_batch=2, large_batch=16)
    assert found.signal.low < 0 < found.signal.high
    assert math.isnan(found.scale.value) or found.scale.high == math.inf
    assert not found.scale.converged


def test_a_step_without_both_norms_is_left_out() -> None:
    plain = noise_scale([3.0, 3.0], [2.0, 2.5], small_batch=1, large_batch=2)
    holes = noise_scale([3.0, math.nan, 3.0, 7.0], [2.0, 9.0, 2.5, math.nan], small_batch=1, large_batch=2)
    assert holes.scale.value == pytest.approx(plain.scale.value)
    assert holes.noise.value == pytest.approx(plain.noise.value)
    assert holes.signal.value == pytest.approx(plain.signal.value)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ProbeError, match="batch sizes must satisfy 0 < small < large, got 4 and 4"):
        noise_scale([1.0], [1.0], small_batch=4, large_batch=4)
    with pytest.raises(ProbeError, match="one value per step, got 2 and 1"):
        noise_scale([1.0, 1.0], [1.0], small_batch=1, large_batch=4)
    with pytest.raises(ProbeError, match="got 1 of 2"):
        noise_scale([1.0, math.nan], [1.0, 1.0], small_batch=1, large_batch=4)
    with pytest.raises(ProbeError, match="squared norms must be at least 0, got -1"):
        noise_scale([1.0, -1.0], [1.0, 1.0], small_batch=1, large_batch=4)
