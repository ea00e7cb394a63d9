"""Series of runs, and bands over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.series import (
    Series,
    against_loss,
    evaluations,
    loss_at,
    over_seeds,
    probe_series,
    spectrum_series,
    step_series,
    synced_series,
    tensor_series,
)


def series(x, y, error=None):
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    return Series("run", x, y, np.full(len(x), np.nan) if error is None else np.array(error, dtype=float))


def test_a_band_is_the_median_and_the_range_over_seeds():
    band = over_seeds("arm", [series([1, 2], [1, 10]), series([1, 2], [3, 30]), series([1, 2], [2, 20])])
    assert (band.arm, band.seeds, band.steps_per_point) == ("arm", 3, 1)
    np.testing.assert_array_equal(band.median, [2, 20])
    np.testing.assert_array_equal(band.low, [1, 10])
    np.testing.assert_array_equal(band.high, [3, 30])


def test_a_band_keeps_measurement_error_apart_and_takes_the_widest():
    band = over_seeds("arm", [series([1], [5], [0.25]), series([1], [5], [0.5])])
    assert band.low[0] == band.high[0] == 5
    assert band.error[0] == 0.5


def test_a_missing_number_is_a_gap_in_the_band_and_not_a_zero():
    band = over_seeds("arm", [series([1, 2, 3], [1, np.nan, 3]), series([1, 2, 3], [5, np.nan, np.nan])])
    np.testing.assert_array_equal(band.median, [3, np.nan, 3])
    np.testing.assert_array_equal(band.low, [1, np.nan, 3])


def test_a_seed_that_ended_early_stops_taking_part():
    band = over_seeds("arm", [series([1, 2], [1, 1]), series([1], [3])])
    np.testing.assert_array_equal(band.median, [2, 1])
    assert band.seeds == 2


def test_a_band_of_nothing_is_empty():
    band = over_seeds("arm", [series([], []), series([1], [np.nan])])
    assert band.seeds == 0
    assert len(band.x) == 0


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.lists(
        st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.inf)), min_size=1, max_size=120),
        min_size=1,
        max_size=3,
    ),
    points=st.integers(1, 30),
)
def test_a_gathered_band_holds_every_extreme_and_every_gap(seeds: list[list[float | None]], points: int) -> None:
    """Of any numbers: nothing lies outside the band, nothing in it was not there, and only a gap is drawn as one."""
    raw = [np.array([np.nan if v is None or math.isinf(v) else v for v in one]) for one in seeds]
    errors = [np.abs(one) for one in raw]
    band = over_seeds("arm", [series(np.arange(len(y)), y, e) for y, e in zip(raw, errors, strict=True)], points=points)
    there = [y for y in raw if np.isfinite(y).any()]
    assert band.seeds == len(there)
    assert len(band.x) <= points
    if not there:
        return
    steps = np.arange(max(map(len, there)))
    for point, last in enumerate(band.x):
        before = band.x[point - 1] if point else -1
        inside = [y[(steps[: len(y)] > before) & (steps[: len(y)] <= last)] for y in there]
        numbers = np.concatenate(inside)
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers):
            ends = (band.low[point], band.high[point], band.median[point], band.error[point])
            assert ends == (numbers.min(), numbers.max(), np.median(numbers), np.abs(numbers).max())
        else:
            assert np.isnan([band.low[point], band.high[point], band.median[point], band.error[point]]).all()


def test_gathering_steps_keeps_every_extreme():
    y = np.arange(1000.0)
    y[777] = 1e6
    band = over_seeds("arm", [series(np.arange(1000.0), y)], points=100)
    assert band.steps_per_point == 10
    assert len(band.x) == 100
    assert band.high[77] == 1e6
    assert band.median[77] < 1000


def test_arms_keep_the_order_of_their_first_run(write_run):
    runs = [write_run("a", "late"), write_run("b", "early"), write_run("c", "late", 1)]
    assert {arm: [run.name for run in members] for arm, members in by_arm(runs).items()} == {
        "late": ["a", "c"],
        "early": ["b"],
    }


def test_a_step_series_has_one_number_per_step_and_gaps_where_none_was_measured(write_run):
    run = write_run("a")
    loss, accuracy = step_series(run, "loss"), step_series(run, "test_accuracy")
    assert loss.x.tolist() == list(range(1, 41))
    assert loss.y[3] == pytest.approx(0.5)
    assert np.isfinite(accuracy.y).sum() == 4


def test_a_loss_that_is_not_finite_is_a_gap(write_run):
    def broken(table, row):
        return {**row, "loss": float("inf")} if table == "steps" and row["step"] == 7 else row

    assert np.isnan(step_series(write_run("a", rows=broken), "loss").y[6])


def test_shear_has_numbers_only_at_looked_at_steps_with_a_second_pass(write_run):
    with_shear = synced_series(write_run("a", "ars2-sync"), "adversarial_angle")
    assert with_shear.x.tolist() == [10, 20, 30, 40]
    np.testing.assert_allclose(with_shear.y, np.pi / 6)
    assert len(synced_series(write_run("b", "ars2-base"), "adversarial_angle").x) == 0


def test_a_probe_series_carries_half_the_width_of_its_bound(write_run):
    found = probe_series(write_run("a"), "lambda_max")
    assert found.x.tolist() == [0, 1, 2, 4, 8, 16, 32, 40]
    assert found.y[-1] == 50
    np.testing.assert_allclose(found.error, 0.25)


def test_a_probe_series_leaves_out_rows_about_single_tensors(write_run):
    def single(table, row):
        return {**row, "tensor": "0.weight"} if table == "probes" and row["step"] == 8 else row

    assert 8 not in probe_series(write_run("a", rows=single), "trace").x


def test_tensor_and_spectrum_series_are_means_over_matrices(write_run):
    def uneven(table, row):
        if table == "tensors" and row["tensor"] == "2.weight":
            return {**row, "energy_rms": 0.75}
        if table == "spectra" and row["tensor"] == "2.weight" and row["object"] == "whitened":
            return {**row, "entropy_energy": 0.6}
        return row

    run = write_run("a", rows=uneven)
    np.testing.assert_allclose(tensor_series(run, "energy_rms").y, 0.5)
    np.testing.assert_allclose(spectrum_series(run, "whitened", "entropy_energy").y, 0.7)


def test_the_loss_of_an_evaluation_is_the_one_measured_on_the_same_data(write_run):
    run = write_run("a")
    np.testing.assert_allclose(loss_at(run, np.array([0.0, 1.0, 40.0])), [2.0, 1.0, 0.05])
    np.testing.assert_allclose(loss_at(run, np.array([39.0])), [np.nan])  # no evaluation there


def test_a_measure_against_the_loss_keeps_the_order_of_training(write_run):
    found = against_loss(write_run("a"), "adaptive_trace")
    assert found.x[0] == pytest.approx(2.0)
    assert np.all(np.diff(found.x) <= 0)
    np.testing.assert_allclose(found.y, 3.0)


def test_a_run_without_curvature_has_no_evaluations(write_run):
    assert len(evaluations(write_run("a", curvature=False))) == 0
    assert evaluations(write_run("b", steps=4)).tolist() == [0, 1, 2, 4]
