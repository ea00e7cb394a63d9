from __future__ import annotations

import math

import numpy as np
import pytest

from lossscope.probes.dynamics.outlier_layer import OutlierLayer, first_outlier_layer
from lossscope.probes.errors import ProbeError


def series(steps: int = 60) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    sizes = np.array([1e-4, 1e-2, 1.0])
    return np.random.default_rng(0).uniform(-2, 2, (steps, 3)) * sizes


def test_the_first_layer_above_ten_times_its_running_median_is_found() -> None:
    remainders = series()
    remainders[40, 0] = 5e-3  # small compared with the others, large for this layer
    remainders[43, 1] = 5.0
    found = first_outlier_layer(remainders, ["in", "mid", "out"])
    usual = float(np.median(np.abs(remainders[20:40, 0])))
    assert found is not None
    assert (found.layer, found.step) == ("in", 40)
    assert found.ratio == pytest.approx(5e-3 / (10 * usual))
    assert first_outlier_layer(remainders[:40], ["in", "mid", "out"]) is None


def test_of_two_at_one_step_the_farther_one_is_named() -> None:
    remainders = series()
    remainders[40] = [5e-3, 5.0, 1.0]
    found = first_outlier_layer(remainders, ["in", "mid", "out"])
    assert found is not None
    assert (found.layer, found.step) == ("mid", 40)


def test_a_threshold_needs_half_a_window_and_skips_missing_values() -> None:
    flat = np.ones((30, 1))
    flat[9] = 100.0
    assert first_outlier_layer(flat, ["w"]) is None
    flat[10] = 100.0
    found = first_outlier_layer(flat, ["w"])
    assert found == OutlierLayer("w", 10, 10.0)
    flat[10], flat[3] = math.nan, math.nan
    flat[11] = 100.0
    assert first_outlier_layer(flat, ["w"]) is None  # nine are known
    assert first_outlier_layer(flat, ["w"], window=18) == OutlierLayer("w", 11, 10.0)
    assert first_outlier_layer(np.full((30, 1), math.nan), ["w"]) is None


def test_a_layer_with_zero_median_is_judged_by_the_rounding() -> None:
    zeros = np.zeros((20, 2))
    zeros[15, 1] = 1e-7
    assert first_outlier_layer(zeros, ["a", "b"]) is None
    assert first_outlier_layer(zeros, ["a", "b"], rounding=5e-8) == OutlierLayer("b", 15, pytest.approx(2))
    assert first_outlier_layer(zeros, ["a", "b"], rounding=2e-7) is None


def test_each_step_has_its_own_rounding() -> None:
    remainders = series()
    remainders[40, 0] = 5e-3
    rounding = np.where(np.arange(60) > 40, 1.0, 1e-9)  # the loss has grown since
    assert first_outlier_layer(remainders, ["in", "mid", "out"], rounding=1.0) is None
    found = first_outlier_layer(remainders, ["in", "mid", "out"], rounding=rounding)
    assert found is not None
    assert (found.layer, found.step) == ("in", 40)
    with pytest.raises(ProbeError, match=r"must be one number or have shape \(60,\), got shape \(3,\)"):
        first_outlier_layer(remainders, ["in", "mid", "out"], rounding=[0.0, 1.0, 2.0])
    with pytest.raises(ProbeError, match="rounding must be finite and at least 0 nats, got nan"):
        first_outlier_layer(remainders, ["in", "mid", "out"], rounding=math.nan)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ProbeError, match=r"must have shape \(steps, 3\), one column per layer, got \(4, 2\)"):
        first_outlier_layer(np.ones((4, 2)), ["a", "b", "c"])
    with pytest.raises(ProbeError, match=r"factor must be finite and at least 1, got 0\.5"):
        first_outlier_layer(np.ones((4, 1)), ["a"], factor=0.5)
    with pytest.raises(ProbeError, match="window must be at least 2 steps, got 1"):
        first_outlier_layer(np.ones((4, 1)), ["a"], window=1)
    with pytest.raises(ProbeError, match="rounding must be finite and at least 0 nats, got -1"):
        first_outlier_layer(np.ones((4, 1)), ["a"], rounding=-1.0)
