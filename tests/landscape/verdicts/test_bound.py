"""Bounds: means with intervals, times that may be censored, and the shares that decide them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from lossscope.landscape.verdicts.bound import share_interval
from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.judge import judge
from lossscope.landscape.verdicts.statistic_values import Times, jackknifed_memory


def claim(statistic: str, **keys: Any) -> Claim:
    usual = {"id": "C3", "text": "faster", "kind": "bound", "statistic": statistic, "a": ("a",), "margin": 0.01}
    return Claim(**{**usual, **keys})


def accurate(made: Any, arm: str, seed: int, reached: int | None, length: int = 100) -> Any:
    """Return a run that reaches an accuracy of 0.99 at a step, or never."""
    steps = [
        {"step": step, "passes": 1, "test_accuracy": 0.99 if reached is not None and step >= reached else 0.1}
        for step in range(1, length + 1)
    ]
    return made.run(arm, seed, more={"steps": steps})


def timed(made: Any, times: list[tuple[int | None, int | None]], length: int = 100) -> list[Any]:
    runs = []
    for seed, (a, b) in enumerate(times):
        runs += [accurate(made, "a", seed, a, length), accurate(made, "b", seed, b, length)]
    return runs


FIRST = "first_step(test_accuracy >= 0.99)"


TIMES = {
    "all reached": ([(10, 60)] * 10, "SUPPORTED", 10),
    "nine of ten": ([(10, 60)] * 9 + [(10, 20)], "SUPPORTED", 9),
    "eight of ten": ([(10, 60)] * 8 + [(10, 20)] * 2, "INCONCLUSIVE", 8),
    "b never, long enough": ([(10, None)] * 10, "SUPPORTED", 10),
    "b never, too short": ([(50, None)] * 10, "INCONCLUSIVE", 0),
    "a never": ([(None, 60)] * 10, "CONTRADICTED", 0),
    "neither": ([(None, None)] * 10, "INCONCLUSIVE", 0),
    "slower": ([(10, 20)] * 10, "CONTRADICTED", 0),
    "too few": ([(10, 60)] * 5, "NOT_JUDGED", 5),
}


@pytest.mark.parametrize(("times", "status", "wins"), TIMES.values(), ids=TIMES)
def test_times_that_may_be_censored_are_judged_by_what_is_certain(made, times, status, wins) -> None:
    found = judge(claim(FIRST, b=("b",), at_least=4.0), timed(made, times))
    assert (found.status, found.rows[0].wins) == (status, wins)
    share = found.figures["shares"][0]
    assert share["wins"] + share["losses"] + share["open"] == share["n"] == len(times)
    if status == "SUPPORTED":
        assert f"on the claimed side in {wins} of 10 pairs" in found.sentence


def test_what_is_known_of_a_ratio() -> None:
    both, b_open, a_open = Times(10, 40, 100, 100), Times(10, math.inf, 100, 100), Times(math.inf, 40, 100, 100)
    neither = Times(math.inf, math.inf, 100, 100)
    assert [one.compared(4.0, least=True) for one in (both, b_open, a_open, neither)] == ["win", "win", "loss", "open"]
    assert [one.compared(4.0, least=False) for one in (both, b_open, a_open, neither)] == ["win", "loss", "win", "open"]
    assert b_open.compared(10.0, least=True) == "win"  # at least 100 / 10
    assert b_open.compared(10.1, least=True) == "open"
    assert both.log_ratio == pytest.approx(math.log(4))
    assert math.isnan(b_open.log_ratio)
    assert Times(0, 40, 100, 100).compared(4.0, least=True) == "open"


def test_the_share_is_the_exact_interval_with_open_pairs_against_both_sides() -> None:
    low, high = share_interval(7, 1, 10)
    assert low == binomtest(7, 10).proportion_ci(0.95, "exact").low
    assert high == binomtest(9, 10).proportion_ci(0.95, "exact").high
    assert share_interval(9, 1, 10)[0] > 0.5 > share_interval(8, 2, 10)[0]
    assert share_interval(0, 10, 10)[1] < 0.5


def with_test_loss(made: Any, difference: float, n: int = 8) -> list[Any]:
    generator = np.random.default_rng(0)
    runs = []
    for seed in range(n):
        noise = 0.001 * float(generator.standard_normal())
        for arm, level in (("a", 0.08 + difference + noise), ("b", 0.08)):
            steps = [{"step": step, "passes": 1, "test_loss": level} for step in range(1, 51)]
            runs.append(made.run(arm, seed, more={"steps": steps}))
    return runs


@pytest.mark.parametrize(
    ("difference", "status", "small"),
    [
        (-0.02, "SUPPORTED", False),
        (-0.004, "SUPPORTED", True),
        (0.02, "CONTRADICTED", False),
        (0.0, "INCONCLUSIVE", False),
    ],
)
def test_a_difference_of_test_losses_at_the_level(made, difference, status, small) -> None:
    found = judge(claim("test_loss", b=("b",), at_most=0.0, level=0.02), with_test_loss(made, difference))
    assert (found.status, found.small, found.level) == (status, small, 0.02)
    assert found.rows[0].ratio == pytest.approx(difference, abs=0.001)
    assert "test_loss at loss 0.02 is " in found.sentence
    assert found.sentence.endswith(
        {"SUPPORTED": "as claimed, at most 0.", "CONTRADICTED": "not at most 0."}.get(status, "0.")
    )


def test_a_missing_number_opens_the_row(made) -> None:
    runs = with_test_loss(made, -0.02)
    runs[0] = made.run("a", 0, losses=(2.0, 0.5))
    found = judge(claim("test_loss", b=("b",), at_most=0.0, level=0.02), runs)
    assert (found.status, [one.code for one in found.reasons]) == ("INCONCLUSIVE", ["MISSING_LEVEL"])
    assert "1 of 8 pairs never reached loss 0.02 (a-s0: lowest 0.5)" in found.sentence


def test_rows_on_both_sides_are_mixed(made) -> None:
    runs = [*timed(made, [(10, 60)] * 10), *(accurate(made, "c", seed, 12) for seed in range(10))]
    found = judge(claim(FIRST, b=("b", "c"), at_least=4.0), runs)
    assert (found.status, [row.word for row in found.rows]) == ("MIXED", ["holds", "fails"])


def test_step_ratio_counts_the_steps_up_to_the_level(made) -> None:
    slow = (2.0, 1.9, 1.8, 1.7, 0.8, 0.3, 0.08, 0.03, 0.01)
    runs = [made.run("a", seed) for seed in range(6)] + [made.run("b", seed, losses=slow) for seed in range(6)]
    found = judge(claim("step_ratio", b=("b",), at_least=1.5, level=0.02), runs)
    assert (found.status, found.level) == ("SUPPORTED", 0.02)
    step = 40 + 10 * math.log(0.03 / 0.02) / math.log(0.03 / 0.01)
    assert found.rows[0].ratio == pytest.approx((step + 30) / step, rel=1e-6)
    assert judge(claim("step_ratio", b=("b",), at_most=1.5), runs).level == 0.01


def test_seconds_ratio_leaves_out_the_time_of_evaluations(made) -> None:
    def clocked(arm: str, seed: int, pace: float) -> Any:
        times = np.cumsum([pace + (50.0 if step % 10 == 0 else 0.0) for step in range(40)])
        steps = [{"step": k + 1, "passes": 1, "seconds": float(at)} for k, at in enumerate(times)]
        return made.run(arm, seed, more={"steps": steps})

    runs = [clocked(arm, seed, pace) for seed in range(6) for arm, pace in (("a", 0.2 + 0.001 * seed), ("b", 0.1))]
    found = judge(claim("seconds_ratio", b=("b",), at_most=2.5), runs)
    assert found.status == "SUPPORTED"
    assert found.rows[0].ratio == pytest.approx(2.02, abs=0.02)
    assert judge(claim("seconds_ratio", b=("b",), at_most=1.05), runs).status == "CONTRADICTED"


def overfitted(made: Any, seed: int, rise: float) -> Any:
    steps = [{"step": k, "passes": 1, "test_loss": loss} for k, loss in enumerate((1.0, 0.5, 0.5 * rise), 1)]
    return made.run("a", seed, more={"steps": steps})


def test_overfit_is_the_final_over_the_least_test_loss_of_each_seed(made) -> None:
    runs = [overfitted(made, seed, 1.3 + 0.01 * seed) for seed in range(6)]
    found = judge(claim("overfit", at_most=1.05), runs)
    assert (found.status, found.rows[0].n, found.rows[0].b) == ("CONTRADICTED", 6, "")
    assert found.rows[0].ratio == pytest.approx(1.325, abs=0.001)
    assert "6 seeds" in found.sentence
    few = judge(claim("overfit", at_most=1.05), runs[:3])
    assert (few.status, few.reasons[0].code) == ("NOT_JUDGED", "TOO_FEW_PAIRS")
    bare = judge(claim("overfit", at_most=1.05), [*runs[:5], made.run("a", 5)])
    assert (bare.status, bare.reasons[0].code) == ("INCONCLUSIVE", "NOT_MEASURED")


def test_the_share_of_ascents(made) -> None:
    runs = [made.run("a", seed, passes=2) for seed in range(6)]
    assert judge(claim("ascent_share", at_least=0.5), runs).status == "SUPPORTED"
    assert judge(claim("ascent_share", at_least=0.5), [made.run("a", s) for s in range(6)]).status == "CONTRADICTED"


def windows(made: Any, seed: int, shear: float, gradient: float, noise: float = 0.02) -> Any:
    """Return a run whose normalized direction memories at lag 5 are known, up to noise; the ceiling is 0.3."""
    generator = np.random.default_rng(seed)
    rows = []
    for begin in range(0, 400, 40):
        for kind, memory in (("shear", shear), ("gradient", gradient)):
            for lag, cosine in ((0, 0.3), (5, 0.3 * memory)):
                value = cosine + noise * float(generator.standard_normal())
                rows.append({"step": begin + lag, "object": kind, "lag": lag, "cosine": value, "size": 100})
    return made.run("a", seed, more={"pairs": rows})


def test_the_direction_memory_of_ten_seeds_has_a_finite_interval_that_holds_the_truth(made) -> None:
    runs = [windows(made, seed, 0.7, 0.5) for seed in range(10)]
    found = judge(claim("memory_difference(5)", at_least=0.0), runs)
    (row,) = found.rows
    assert found.status == "SUPPORTED"
    assert 0.05 < row.low < 0.2 < row.high < 0.35
    below = judge(claim("memory_difference(5)", at_least=0.0), [windows(made, seed, 0.3, 0.8) for seed in range(10)])
    assert below.status == "CONTRADICTED"
    absent = judge(claim("memory_difference(7)", at_least=0.0), runs)
    assert (absent.status, absent.reasons[0].code) == ("INCONCLUSIVE", "NOT_MEASURED")


def test_jackknife_values_of_equal_seeds_are_their_difference() -> None:
    one = np.array([0.14, 0.2, 0.05, 0.1])
    assert jackknifed_memory([one] * 6) == pytest.approx([0.7 - 0.5] * 6)
    assert all(math.isnan(value) for value in jackknifed_memory([one]))
    assert math.isnan(jackknifed_memory([one, one, None])[2])


def test_bounds_name_missing_arms_and_seeds(made) -> None:
    assert "no run of arm a is here" in judge(claim("overfit", at_most=1.0), []).sentence.lower()
    unseeded = [made.run("a", seed, seeds=None) for seed in range(6)]
    assert "recorded no seeds" in judge(claim("overfit", at_most=1.0), unseeded).sentence
    other = judge(claim(FIRST, b=("b",), at_least=4.0), [made.run("a", 0), made.run("b", 1)])
    assert (other.status, other.reasons[0].code) == ("NOT_JUDGED", "NO_PAIRS")
    bare = made.two_arms(0.5, 6, changed=lambda row: None if row["measure"] == "loss" else row)
    found = judge(claim("test_loss", b=("b",), at_most=0.0), bare)
    assert (found.status, found.reasons[0].code) == ("NOT_JUDGED", "NOT_MEASURED")


def test_a_named_task_without_runs_is_not_dropped(made) -> None:
    runs = [overfitted(made, seed, 1.0) for seed in range(6)]
    found = judge(claim("overfit", at_most=1.05, tasks=("digits-mlp", "modadd-59")), runs)
    assert found.status == "NOT_JUDGED"
    assert found.sentence == "No run of modadd-59 is here; tasks here: digits-mlp."
    other = [made.run("c", seed, config={"workload": "modadd-59"}) for seed in range(6)]
    found = judge(claim("overfit", at_most=1.05, tasks=("digits-mlp", "modadd-59")), [*runs, *other])
    assert (found.status, found.sentence) == ("NOT_JUDGED", "No run of arm a on modadd-59 is here.")


def test_runs_of_which_none_was_trained_past_the_least_test_loss_support_nothing(made) -> None:
    found = judge(claim("overfit", at_most=1.05), [overfitted(made, seed, 1.0) for seed in range(6)])
    assert found.status == "INCONCLUSIVE"
    assert "cannot tell" in found.sentence


def test_runs_that_were_not_trained_past_the_least_test_loss_are_noted(made) -> None:
    runs = [overfitted(made, seed, 1.0 if seed < 4 else 1.001) for seed in range(6)]
    (note,) = [one for one in judge(claim("overfit", at_most=1.05), runs).notes if one.code == "NOT_PAST_MINIMUM"]
    assert note.text == "In 4 of 6 runs the last test loss is the least: they were not trained past it."
    risen = [overfitted(made, seed, 1.001) for seed in range(6)]
    assert "NOT_PAST_MINIMUM" not in {one.code for one in judge(claim("overfit", at_most=1.05), risen).notes}


def test_times_that_were_not_recorded_are_open(made) -> None:
    bare = [made.run("a", seed) for seed in range(6)]  # no test accuracy
    found = judge(claim(FIRST, b=("b",), at_least=4.0), [*bare, *(accurate(made, "b", s, 60) for s in range(6))])
    assert (found.status, found.figures["shares"][0]["open"]) == ("INCONCLUSIVE", 6)
    assert (found.reasons[0].code, "when a-s0 reached it was not recorded" in found.reasons[0].text) == (
        "NOT_MEASURED",
        True,
    )
    early = [made.run("a", seed, losses=(0.01, 0.005)) for seed in range(6)]  # below the level at the first evaluation
    found = judge(
        claim("step_ratio", b=("b",), at_least=1.5, level=0.02), [*early, *(made.run("b", s) for s in range(6))]
    )
    assert (found.status, found.figures["shares"][0]["open"]) == ("INCONCLUSIVE", 6)


def test_a_run_is_known_up_to_the_last_step_at_which_its_accuracy_was_measured(made) -> None:
    runs = []
    for seed in range(10):
        steps = [{"step": k, "passes": 1, "test_accuracy": 0.1 if k == 30 else None} for k in range(1, 101)]
        runs += [accurate(made, "a", seed, 10), made.run("b", seed, more={"steps": steps})]
    assert judge(claim(FIRST, b=("b",), at_least=4.0), runs).status == "INCONCLUSIVE"  # known is at least 3, not 10


def test_runs_without_a_partner_are_named_beside_a_bound(made) -> None:
    runs = [one for one in with_test_loss(made, -0.02) if one.name != "b-s7"]
    (note,) = [one for one in judge(claim("test_loss", b=("b",), at_most=0.0), runs).notes if one.code == "UNPAIRED"]
    assert note.text == "Left out, for want of a partner: a-s7."


def test_times_of_runs_that_were_trained_hours_apart_are_not_compared(made) -> None:
    steps = [{"step": k, "passes": 1, "seconds": 0.1 * k} for k in range(1, 40)]
    late = {"created": "2026-01-01T01:30:00+00:00"}
    runs = [made.run(arm, seed, more={"steps": steps}) for seed in range(6) for arm in "ab"]
    assert judge(claim("seconds_ratio", b=("b",), at_most=1.05), runs).status == "SUPPORTED"
    runs[0].manifest.update(late)
    found = judge(claim("seconds_ratio", b=("b",), at_most=1.05), runs)
    assert (found.status, found.reasons[0].code) == ("INCONCLUSIVE", "NOT_MEASURED")
    assert "trained 1.5 hours from its partner" in found.sentence
    assert "at loss" not in found.sentence  # times have no level


def test_seconds_ratio_counts_rare_ascents(made) -> None:
    def clocked(arm: str, seed: int, every: int) -> Any:
        rows = [{"step": k, "synced": k % every == 0, "passes": 1 + (k % every == 0)} for k in range(1, 41)]
        times = np.cumsum([1.0 + row["synced"] for row in rows])
        steps = [{**row, "seconds": float(at)} for row, at in zip(rows, times, strict=True)]
        return made.run(arm, seed, more={"steps": steps})

    runs = [clocked(arm, seed, every) for seed in range(6) for arm, every in (("a", 5), ("b", 100))]
    found = judge(claim("seconds_ratio", b=("b",), at_most=1.05), runs)
    assert found.status == "CONTRADICTED"
    assert found.rows[0].ratio == pytest.approx(1.2, abs=0.01)
