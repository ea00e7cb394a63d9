"""Training dynamics of recorded runs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lossscope.landscape.analysis import (
    Estimate,
    layers_of,
    mean_order,
    memory_of_arm,
    noise_of,
    order_of,
    pooled,
    trigger_of,
)
from lossscope.landscape.analysis.arm_memory import jackknifed
from lossscope.landscape.analysis.minibatch_windows import lagged_cosines_of
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.landscape.verdicts.statistic_values import _cosines, jackknifed_memory
from lossscope.optimizer.ascent.trigger import TriggerState, adaptive
from lossscope.probes.dynamics.gradient_noise import noise_scale
from lossscope.probes.dynamics.trigger_test import timer_test, trigger_test

Rows = Iterable[tuple[str, dict[str, object]]]
TRUE, CEILING, SIZE = 0.802, 0.205, 200


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Run]:
    """Write a run of given rows and open it."""

    def run(rows: Rows, name: str = "run", **facts: object) -> Run:
        store = RunStore.create(tmp_path / name, {"arm": "sgd", **facts})
        for table, row in rows:
            store.append(table, row)
        store.close("finished", "the loop ended")
        return Run.open(tmp_path / name)

    return run


def samples(cosines: dict[tuple[int, int], float], kind: str = "gradient", **more: object) -> Rows:
    """Yield rows of pairs, by first step and lag."""
    for (begin, lag), cosine in cosines.items():
        yield "pairs", {"step": begin + lag, "object": kind, "lag": lag, "cosine": cosine, "size": 7, **more}


def two_batches(turn: float, windows: int, seed: int, kind: str = "gradient") -> Rows:
    """Fixture T8 in windows: a unit vector that turns in a plane, with the noise of two new batches at each sample."""
    generator, spread = np.random.default_rng(seed), math.sqrt((1 / CEILING - 1) / SIZE)

    def sample(step: int) -> np.ndarray:
        x = spread * generator.standard_normal((2, SIZE))
        x[:, 0] += math.cos(turn * step)
        x[:, 1] += math.sin(turn * step)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    for begin in range(0, 40 * windows, 40):
        first = sample(begin)
        for lag in (0, 1, 5):
            then = first if lag == 0 else sample(begin + lag)
            cosine = float(first[0] @ then[1] + first[1] @ then[0]) / 2
            yield "pairs", {"step": begin + lag, "object": kind, "lag": lag, "cosine": cosine, "size": SIZE}


def test_each_window_is_a_column_and_its_ceiling_the_first_row(recorded: Callable[..., Run]) -> None:
    cosines = {(0, 0): 0.5, (0, 1): 0.4, (0, 5): 0.3, (40, 0): 0.6, (40, 1): 0.2}  # the second was cut short
    found = lagged_cosines_of(recorded(samples(cosines)))
    assert list(found) == ["gradient"]
    one = found["gradient"]
    assert (one.lags, one.size, one.shared) == ((1, 5), 7, False)
    np.testing.assert_array_equal(one.values, [[0.5, 0.6], [0.4, 0.2], [0.3, np.nan]])


def test_objects_have_the_same_windows_so_that_their_difference_is_taken_over_them(
    recorded: Callable[..., Run],
) -> None:
    g, v = {(0, 0): 0.5, (0, 1): 0.4, (9, 0): 0.5, (9, 1): 0.4}, {(9, 0): 0.8, (9, 1): 0.7}
    found = lagged_cosines_of(recorded([*samples(g), *samples(v, "shear")]))
    np.testing.assert_array_equal(found["shear"].values, [[np.nan, 0.8], [np.nan, 0.7]])
    memory = memory_of_arm([recorded([*samples(g), *samples(v, "shear")], "again")])
    assert memory.windows == 2
    assert memory.differences[1].estimate.value == pytest.approx(0.7 / 0.8 - 0.4 / 0.5)


def test_of_a_sample_that_was_taken_twice_the_last_one_counts(recorded: Callable[..., Run]) -> None:
    rows = [*samples({(0, 0): 0.5, (0, 1): 0.1}), *samples({(0, 1): 0.4})]
    assert lagged_cosines_of(recorded(rows))["gradient"].values[1, 0] == 0.4


def test_windows_show_the_cosine_under_the_noise(recorded: Callable[..., Run]) -> None:
    turn = math.acos(TRUE)
    rows = [*two_batches(turn, 60, 1), *two_batches(1.0, 60, 2, "shear")]
    memory = memory_of_arm([recorded(rows)])
    found = memory.directions["gradient"]
    assert found.ceiling.estimate.value == pytest.approx(CEILING, abs=0.03)
    assert found.normalized[1].estimate.value == pytest.approx(TRUE, abs=0.1)
    assert found.normalized[5].estimate.value == pytest.approx(math.cos(5 * turn), abs=0.1)
    for lag, one in memory.differences.items():
        true = math.cos(lag) - math.cos(lag * turn)
        assert one.estimate.low < true < one.estimate.high


def test_a_run_without_minibatches_has_no_memory_and_no_noise_scale(recorded: Callable[..., Run]) -> None:
    run = recorded([("steps", {"step": 1, "loss": 1.0})])
    assert memory_of_arm([run]) is noise_of(run) is layers_of(run) is trigger_of(run) is None
    assert order_of(run) == {}


def own(value: float, half: float = 1.0) -> Estimate:
    return Estimate(value, half / 2, value - half, value + half, 20, "standard error")


def test_one_seed_keeps_its_own_interval() -> None:
    found = pooled([("a", own(3.0))])
    assert (found.estimate, found.seeds, found.judged) == (own(3.0), 1, True)


def test_two_seeds_are_the_unit_whatever_the_error_of_each() -> None:
    for half in (1.0, 100.0):
        found = pooled([("a", own(1.0, half)), ("b", own(2.0, half)), ("c", own(6.0, half))])
        spread = 4.302653 * math.sqrt(7.0 / 3)  # t of 2 degrees of freedom; the variance of 1, 2, 6 is 7
        assert found.estimate.value == pytest.approx(3.0)
        assert (found.estimate.low, found.estimate.high) == pytest.approx((3 - spread, 3 + spread), rel=1e-6)
        assert (found.seeds, found.estimate.samples, found.judged) == (3, 3, True)


def test_a_seed_that_was_run_twice_counts_once_with_the_mean_of_its_runs_and_a_gap_not_at_all() -> None:
    twice = pooled([("a", own(1.0)), ("a", own(3.0)), ("b", own(4.0)), ("c", own(math.nan))])
    assert (twice.estimate.value, twice.seeds, twice.missing) == (3.0, 2, 1)
    assert not twice.judged  # the third seed is missing
    for same in ([1.0, 3.0], [3.0, 1.0]):
        found = pooled([("a", own(value)) for value in same])
        assert (found.estimate.value, found.seeds, found.judged) == (2.0, 1, False)
        assert (found.estimate.low, found.estimate.high) == (-math.inf, math.inf)  # no information about other seeds
    nothing = pooled([("a", own(math.nan))])
    assert (math.isnan(nothing.estimate.value), nothing.seeds, nothing.judged) == (True, 0, False)


def test_an_interval_without_ends_or_from_few_windows_is_not_judged() -> None:
    assert not pooled([("a", own(1.0, math.inf))]).judged
    few = pooled([("a", replace(own(1.0), samples=4))])
    assert (few.estimate.value, few.estimate.low, few.estimate.high, few.judged) == (1.0, -math.inf, math.inf, False)


def test_a_seed_whose_own_number_may_be_anything_leaves_the_arm_unjudged() -> None:
    loose = [("a", own(2.0)), ("b", own(2.1, math.inf))]
    found = pooled(loose).estimate
    assert (found.value, found.low, found.high) == (pytest.approx(2.05), -math.inf, math.inf)
    assert not pooled(loose).judged
    one_window = replace(own(2.1, math.inf), samples=1)  # its spread is unknown, its number is not
    assert pooled([("a", one_window), ("b", one_window)]).judged


def test_student_over_seeds_covers_the_truth_in_most_draws() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        found = pooled((seed, own(1 + generator.standard_normal(), 0.01)) for seed in range(3)).estimate
        inside += found.low <= 1 <= found.high
    assert 368 <= inside <= 392  # 95 % of 400, and three standard deviations


def test_the_memory_of_an_arm_is_over_its_seeds(recorded: Callable[..., Run]) -> None:
    values = [0.3, 0.4, 0.5]
    runs = [
        recorded(samples({(0, 0): 0.5, (0, 1): x, (9, 0): 0.5, (9, 1): x}), f"s{k}", seeds={"init": k})
        for k, x in enumerate(values)
    ]
    memory = memory_of_arm(runs)
    first = memory.directions["gradient"].normalized[1]
    assert (memory.windows, first.seeds) == (6, 3)
    assert first.estimate.value == pytest.approx(0.8)
    assert first.estimate.stderr == pytest.approx(0.2 / math.sqrt(3))
    angle = memory.directions["gradient"].angular_velocity
    assert angle.value == pytest.approx(math.acos(0.8))
    assert 0 <= angle.low < angle.value < angle.high
    assert memory.differences == {}


@pytest.mark.parametrize(
    ("cosines", "half_life"),
    [
        ({1: 0.4, 5: 0.35, 20: 0.1}, (5, 20)),
        ({1: 0.4, 5: 0.35, 20: 0.3}, (20, math.inf)),  # longer than any lag
        ({1: 0.2, 5: 0.1, 20: 0.1}, (0, 1)),
        ({1: None, 5: None, 20: 0.1}, (0, 20)),  # open at first
        ({1: 0.4, 5: None, 20: 0.1}, (1, 20)),
        ({1: 0.4, 5: None, 20: 0.4}, (1, math.inf)),  # it may have come and gone
        ({1: None, 5: None, 20: None}, (0, math.inf)),  # nothing is known
    ],
)
def test_the_half_life_of_an_arm_lies_between_what_the_intervals_allow(
    recorded: Callable[..., Run], cosines: dict[int, float | None], half_life: tuple[float, float]
) -> None:
    def one(lag: int, window: int) -> float:
        about = cosines[lag]
        return (0.05, 0.42, 0.42, 0.05, 0.05, 0.42)[window] if about is None else about + 0.001 * (window % 2)

    rows = {(50 * window, lag): one(lag, window) for window in range(6) for lag in cosines}
    run = recorded(samples({**{(50 * window, 0): 0.5 for window in range(6)}, **rows}))
    assert memory_of_arm([run]).directions["gradient"].half_life == half_life


def test_a_seed_without_windows_or_without_a_shear_counts_as_missing(recorded: Callable[..., Run]) -> None:
    g = {(begin, lag): 0.5 - lag / 10 for begin in (0, 9) for lag in (0, 1)}
    both = [recorded([*samples(g), *samples(g, "shear")], f"s{k}", seeds={"init": k}) for k in range(2)]
    bare = recorded(samples(g), "bare", seeds={"init": 2})
    crashed = recorded([("steps", {"step": 1, "loss": 1.0})], "crashed", seeds={"init": 3})
    memory = memory_of_arm([*both, bare, crashed])
    gradient, shear = memory.directions["gradient"], memory.directions["shear"]
    assert (gradient.normalized[1].seeds, gradient.normalized[1].missing, gradient.ceiling.missing) == (3, 1, 1)
    assert (shear.normalized[1].missing, shear.raw[1].missing, shear.ceiling.missing) == (2, 2, 2)
    assert (memory.differences[1].seeds, memory.differences[1].missing, memory.differences[1].judged) == (2, 2, False)


AGA = {"mode": "aga", "lambda": 1.0, "k": 4}


def triggered(steps: Iterable[int], synced: Callable[[int], bool | None]) -> Rows:
    for step in steps:
        yield "steps", {"step": step, "synced": synced(step), "phi": math.sin(step), "threshold": 0.0}


def irregular(step: int) -> bool:
    return step % 4 == 0 or step % 7 == 0


def test_the_trigger_test_is_over_all_recorded_steps(recorded: Callable[..., Run]) -> None:
    for first in (1, 5001):
        steps = range(first, first + 300)
        found = trigger_of(recorded(triggered(steps, irregular), str(first), trigger=AGA))
        assert (found.mode, found.lamda, found.k, found.first, found.last) == ("aga", 1.0, 4, first, first + 299)
        synced, phi = [irregular(step) for step in steps], [math.sin(step) for step in steps]
        assert found.test == trigger_test(synced, phi, [0.0] * 300, k=4)
        assert found.phi.values[0] == pytest.approx(math.cos(1), abs=0.02)


def noise(rule: str, steps: int, seed: int) -> Rows:
    """Rows that the optimizer's own trigger records on white noise."""
    draw, state = random.Random(seed), TriggerState()
    for step in range(1, steps + 1):
        phi = draw.gauss(0, 0.25) if step > 1 else None
        found = adaptive(state, phi, k=10, alpha=0.1, beta=0.99, lamda=2.0, gamma=1.0, rule=rule)
        state = found.after
        threshold = found.threshold if math.isfinite(found.threshold) else None
        yield "steps", {"step": step, "synced": found.sync, "phi": found.phi, "threshold": threshold}


@pytest.mark.parametrize("rule", ["reference", "lagged"])
def test_a_recorded_trigger_on_noise_is_held_against_its_own_thresholds(
    recorded: Callable[..., Run], rule: str
) -> None:
    aga = {"mode": "aga", "lambda": 2.0, "k": 10}
    run = recorded(noise(rule, 200, 1), trigger=aga)
    found = trigger_of(run).test
    assert found.expected == 0.5
    assert found.share.low < 0.5 < found.share.high
    constant = 0.02275  # for a threshold of twice the true deviation
    beyond = found.chance / found.share.value  # share of the steps before the cap
    assert (beyond / 2 > 3 * constant) is (rule == "reference")  # its threshold is too small at first
    timer = trigger_of(recorded(noise(rule, 200, 1), "timer", trigger={**aga, "mode": "timer"})).test
    assert timer == timer_test(run.steps["synced"].eq(True).tolist(), lamda=2.0, k=10)
    assert timer.expected == pytest.approx(constant, abs=1e-5)


def test_a_resumed_run_is_one_run(recorded: Callable[..., Run]) -> None:
    whole = trigger_of(recorded(triggered(range(1, 301), irregular), "whole", trigger=AGA))
    part = recorded(triggered(range(1, 201), irregular), "part", trigger=AGA)
    store = RunStore.resume(part.path, 150)
    for table, row in triggered(range(151, 301), irregular):
        store.append(table, row)
    store.close("finished", "the loop ended")
    found = trigger_of(Run.open(part.path))
    assert found.test.rate == whole.test.rate


@pytest.mark.parametrize(
    ("rows", "trigger", "why"),
    [
        (triggered([*range(1, 50), *range(60, 100)], irregular), AGA, "steps or their `synced` values are missing"),
        (triggered(range(1, 50), lambda step: None if step == 7 else True), AGA, "`synced` values are missing"),
        (triggered(range(1, 50), lambda step: step % 9 == 0), AGA, "exceed the cap k=4"),
        ((), AGA, "no step was recorded"),
        (
            [("steps", {"step": 1, "synced": True, "phi": 0.1, "threshold": 0.2})],
            AGA,
            "thresholds must be at most 0, got 0.2",
        ),
        ([("steps", {"step": step, "synced": True, "phi": 0.1}) for step in (1, 2, 3)], AGA, "pass phi and thresholds"),
        (triggered(range(1, 50), irregular), {"mode": "aga"}, "lambda and k are missing"),
    ],
)
def test_runs_that_cannot_be_tested_have_a_reason(
    recorded: Callable[..., Run], rows: Rows, trigger: dict[str, object], why: str
) -> None:
    found = trigger_of(recorded(rows, trigger=trigger))
    assert found.test is None
    assert why in found.why


def squares(values: Iterable[tuple[int, float, float, float]]) -> Rows:
    for step, small, large, count in values:
        more = {"square": small, "pair_square": large, "samples": count}
        yield from samples({(step, 0): 0.5}, **more)


def test_the_noise_scale_is_that_of_one_minibatch_and_two(recorded: Callable[..., Run]) -> None:
    generator = np.random.default_rng(0)
    small, large = 5 + generator.random(12), 3 + generator.random(12)
    rows = squares((50 * i, a, b, 32.0) for i, (a, b) in enumerate(zip(small, large, strict=True)))
    found = noise_of(recorded(rows))
    assert found.whole == noise_scale(small.tolist(), large.tolist(), small_batch=32, large_batch=64)
    assert found.late == noise_scale(small[6:].tolist(), large[6:].tolist(), small_batch=32, large_batch=64)
    assert (found.windows, found.samples) == (12, 32.0)


@pytest.mark.parametrize(
    ("values", "why"),
    [([(0, 2.0, 1.0, 8.0)], "got 1 of 1"), ([(0, 2.0, 1.0, 8.0), (9, 2.0, 1.0, 16.0)], "differ in size")],
)
def test_windows_without_a_noise_scale_say_why(recorded: Callable[..., Run], values: list, why: str) -> None:
    found = noise_of(recorded(squares(values)))
    assert found.whole is None
    assert why in found.why


def test_late_windows_without_norms_leave_the_noise_scale_of_the_whole(recorded: Callable[..., Run]) -> None:
    values = [(step, 5.0 + step % 3, 3.0 + step % 2, 8.0) for step in range(6)]
    values += [(step, -math.inf, math.inf, 8.0) for step in (18, 19)]
    found = noise_of(recorded(squares(values)))
    assert found.whole is not None
    assert found.late is None


def spectrum(matrix: np.ndarray, kind: str, step: int, tensor: str = "w", part: int | None = None) -> tuple[str, dict]:
    s = np.linalg.svd(matrix, compute_uv=False)
    p = s * s / (s * s).sum()
    entropy = float(-(p * np.log(np.maximum(p, 1e-300))).sum())
    m, n = sorted(matrix.shape)
    row = {"step": step, "tensor": tensor, "slice": part, "object": kind, "values": s.tolist()}
    excess = math.log(m) - (m + 1) / (2 * n) - entropy
    return "spectra", {**row, "entropy_energy": entropy / math.log(m), "excess_order": excess}


def noisy(noise: float, windows: int = 12) -> Rows:
    """Rank one plus white noise with `noise` times its energy in one minibatch."""
    generator = np.random.default_rng(0)
    signal = np.zeros((16, 32))
    signal[0, 0] = 1.0
    for step in range(0, 40 * windows, 40):
        first, second = (signal + math.sqrt(noise / 512) * generator.standard_normal((16, 32)) for _ in "ab")
        yield spectrum(first, "batch_gradient", step)
        yield spectrum((first + second) / 2, "pair_gradient", step)
        yield spectrum(first, "gradient", step)
    yield spectrum(signal + 1.0, "gradient", 40 * windows + 7)  # no minibatch was sampled here


def test_the_order_of_an_infinite_batch_is_extrapolated_from_two_sizes(recorded: Callable[..., Run]) -> None:
    run = recorded(noisy(0.2))
    (found,) = order_of(run).values()
    rows = run.spectra.groupby("object")["excess_order"]
    batch, pair = rows.get_group("batch_gradient").mean(), rows.get_group("pair_gradient").mean()
    assert found.infinite.value == pytest.approx(2 * pair - batch)
    assert found.infinite.low < found.infinite.value < found.infinite.high
    assert found.own.value == pytest.approx(batch)  # only the steps of the windows
    assert found.null == pytest.approx(math.log(16) - 17 / 64)
    assert found.windows == 12


@pytest.mark.parametrize("noise", [0.1, 1.0, 8.0])
def test_the_extrapolated_order_is_a_lower_bound_on_a_low_rank_under_white_noise(
    recorded: Callable[..., Run], noise: float
) -> None:
    (found,) = order_of(recorded(noisy(noise))).values()
    true = found.null  # rank one has zero entropy
    assert found.batch.high < found.pair.low
    assert found.pair.high < found.infinite.low
    assert found.infinite.high < true


def test_a_batch_of_few_samples_has_order_of_its_own_which_the_extrapolation_takes_away(
    recorded: Callable[..., Run],
) -> None:
    def samples(count: int) -> np.ndarray:
        """Return the mean gradient over `count` samples, each of rank one."""
        return generator.standard_normal((16, count)) @ generator.standard_normal((count, 32)) / count

    generator = np.random.default_rng(0)
    rows = [
        spectrum(samples(count), kind, step)
        for step in range(12)
        for kind, count in (("batch_gradient", 3), ("pair_gradient", 6))
    ]
    (found,) = order_of(recorded(rows)).values()
    assert found.batch.low > found.pair.high
    assert found.pair.low > found.infinite.high


def test_slices_are_matrices_of_their_own_and_the_mean_is_over_all(recorded: Callable[..., Run]) -> None:
    generator = np.random.default_rng(0)
    rows = [
        spectrum(generator.standard_normal((4, 6)) * np.arange(1, 7) ** power, kind, step, "heads", power)
        for step in range(5)
        for kind in ("batch_gradient", "pair_gradient")
        for power in (0, 2)
    ]
    run = recorded(rows)
    found, mean = order_of(run), mean_order(run)
    assert list(found) == ["heads[0]", "heads[2]"]
    assert mean.pair.value == pytest.approx(np.mean([one.pair.value for one in found.values()]))
    assert mean.null == pytest.approx(math.log(4) - 5 / 12)
    assert math.isnan(mean.own.value)


def test_without_minibatches_the_training_gradients_stand_alone(recorded: Callable[..., Run]) -> None:
    rows = [row for row in noisy(1.0) if row[1]["object"] == "gradient"]
    (found,) = order_of(recorded(rows)).values()
    assert found.windows == 13
    assert math.isfinite(found.own.value)
    assert math.isnan(found.infinite.value)


def layers(planted: float, step: int = 300, sampled: int = 400, rounding: float = 1e-9, spike: float = 3.0) -> Rows:
    generator = np.random.default_rng(0)
    for one in range(1, sampled + 1):
        loss = spike if one > step else 1.0
        yield "steps", {"step": one, "loss": loss, "remainder_rounding": rounding * loss if one % 10 == 0 else None}
        for name, size in {"in": 1e-4, "out": 1e-2}.items() if one % 10 == 0 else ():
            remainder = planted if (name, one) == ("in", step) else size * generator.uniform(0.5, 1.5)
            yield "tensors", {"step": one, "tensor": name, "track": "matrix", "remainder": remainder}


def test_the_layer_that_left_is_named_with_its_optimizer_step_and_the_losses_around_it(
    recorded: Callable[..., Run],
) -> None:
    found = layers_of(recorded(layers(5e-3)))
    assert (found.layer, found.step, found.samples, found.judged, found.since) == ("in", 300, 40, 30, 110)
    assert 3 < found.ratio < 10
    assert (found.loss_before, found.loss_after, found.rose) == (1.0, 3.0, True)


def test_a_loss_that_fell_is_said_to_have_fallen_and_none_after_the_end_is_unknown(
    recorded: Callable[..., Run],
) -> None:
    falling = [(table, row | {"loss": 1 / row["step"]} if table == "steps" else row) for table, row in layers(5e-3)]
    fell, last = layers_of(recorded(falling)), layers_of(recorded(layers(5e-3, 400), "last"))
    assert fell.rose is False
    assert (last.step, last.rose) == (400, None)


def test_usual_remainders_and_those_below_rounding_are_no_outliers(recorded: Callable[..., Run]) -> None:
    usual, rounded = layers_of(recorded(layers(1e-4))), layers_of(recorded(layers(5e-3, rounding=6e-3), "rounded"))
    assert (usual.layer, usual.judged) == (None, 30)
    assert (rounded.layer, rounded.judged) == (None, 30)


def test_a_spike_of_the_loss_does_not_hide_the_outlier_before_it(recorded: Callable[..., Run]) -> None:
    found = layers_of(recorded(layers(5e-3, rounding=5e-7, spike=1e4)))
    assert (found.layer, found.step, found.loss_after) == ("in", 300, 1e4)


def test_too_few_samples_are_not_judged(recorded: Callable[..., Run]) -> None:
    ten, eleven = (layers_of(recorded(layers(1e-4, sampled=n), str(n))) for n in (100, 110))
    assert ((ten.judged, ten.since), (eleven.judged, eleven.since)) == ((0, None), (1, 110))
    rows = [row for row in layers(1e-4) if row[0] == "steps" or row[1]["step"] % 30 != 0 or row[1]["tensor"] == "out"]
    holes = layers_of(recorded(rows, "holes"))
    assert (holes.judged, holes.since) == (30, 110)  # for at least one layer


def weak(seed: int, turns: dict[str, float]) -> Rows:
    """Yield four windows of a seed whose ceilings are near 0: in single windows, also below it."""
    generator = np.random.default_rng(seed)
    for kind, kept in turns.items():
        for begin in range(0, 160, 40):
            ceiling = 0.1 + 0.08 * generator.standard_normal()
            cosine = 0.1 * kept + 0.08 * generator.standard_normal()
            yield from samples({(begin, 0): ceiling, (begin, 5): cosine}, kind)


def test_ten_seeds_have_an_interval_where_single_seeds_have_none(recorded: Callable[..., Run]) -> None:
    turns = {"gradient": 0.2, "shear": 0.9}
    runs = [recorded(weak(k, turns), f"s{k}", seeds={"init": k}) for k in range(10)]
    alone = [memory_of_arm([run]).directions["shear"].normalized[5].estimate for run in runs]
    assert any(math.isinf(one.high) for one in alone)
    memory = memory_of_arm(runs)
    for kind, kept in turns.items():
        found = memory.directions[kind].normalized[5]
        assert found.judged
        assert found.estimate.low < kept < found.estimate.high
    # The claims of `lossscope check` compute D by their own code.
    values = jackknifed_memory([_cosines(run, 5) for run in runs])
    assert memory.differences[5].estimate.value == pytest.approx(np.mean(values), rel=1e-12)
    assert memory.differences[5].estimate.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(10), rel=1e-12)


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    found = jackknifed([np.array([value, 1.0]) for value in values], lambda one: float(one[0] / one[1])).estimate
    expected = pooled((place, own(value, 0.0)) for place, value in enumerate(values)).estimate
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_the_jackknife_covers_a_ratio_of_means_in_most_draws() -> None:
    generator, inside = np.random.default_rng(1), 0
    for _ in range(400):
        below = 0.1 + 0.03 * generator.standard_normal(10)
        above = 0.5 * below + 0.02 * generator.standard_normal(10)
        sums = [np.array([a, b]) for a, b in zip(above, below, strict=True)]
        found = jackknifed(sums, lambda one: float(one[0] / one[1])).estimate
        inside += found.low <= 0.5 <= found.high
    assert 368 <= inside <= 392  # 95 % of 400, and three standard deviations


@pytest.mark.parametrize("ceilings", [[0.3, -0.25, 0.2, -0.2], [0.5, 0.02, 0.03, 0.01]])
def test_a_ceiling_that_may_be_zero_leaves_the_ends_open(recorded: Callable[..., Run], ceilings: list[float]) -> None:
    runs = [
        recorded(samples({(0, 0): ceiling, (0, 1): 0.1}), f"s{k}", seeds={"init": k})
        for k, ceiling in enumerate(ceilings)
    ]
    found = memory_of_arm(runs).directions["gradient"].normalized[1]
    assert (found.estimate.low, found.estimate.high, found.judged) == (-math.inf, math.inf, False)
