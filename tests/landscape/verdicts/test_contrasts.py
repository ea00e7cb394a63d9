"""Tables of contrasts: intervals for the table as a whole, one level, and costs beside each."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_1samp

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.verdicts.contrasts import contrasts


def arms(made):
    """Return runs of base, sync (half as sharp, with ascents) and twin (as base)."""
    runs = made.two_arms(0.5, 8, names=("sync", "base"), a={"passes": 2})
    return [*runs, *made.two_arms(1.0, 8, names=("twin", "base"), draw=1)[::2]]


def test_intervals_hold_for_the_table_as_a_whole(made) -> None:
    table = contrasts({"ascent": ("sync", "base"), "nothing": ("twin", "base")}, arms(made), level=0.02)
    assert table.confidence == pytest.approx(0.975)
    assert [(one.name, one.word) for one in table.contrasts] == [
        ("ascent", "flatter"),
        ("nothing", "no difference above 25 %"),
    ]
    for one in table.contrasts:
        for row in one.verdict.rows:
            ends = ttest_1samp(row.differences, 0).confidence_interval(0.975)
            assert (math.log(row.low), math.log(row.high)) == pytest.approx((ends.low, ends.high))


def test_costs_stand_beside_each_contrast(made) -> None:
    runs = [*arms(made), *(made.run("rare", s, passes=2, losses=(2.0, 0.3, 0.01)) for s in range(8))]
    first, second = contrasts({"ascent": ("sync", "base"), "often": ("sync", "rare")}, runs, level=0.02).contrasts
    assert first.gradients == pytest.approx(2.0)
    assert math.isnan(first.ascents)
    assert first.cost == ""  # one takes ascents and the other none: that is what is compared
    assert second.gradients == second.ascents > 1.5
    assert "more gradients and" in second.cost


def test_one_level_serves_the_whole_table(made) -> None:
    runs = [*arms(made), *(made.run("slow", seed, losses=(2.0, 0.8, 0.26)) for seed in range(8))]
    table = contrasts({"ascent": ("sync", "base"), "slow": ("slow", "base")}, runs)
    assert table.level == 0.3
    assert {one.verdict.level for one in table.contrasts} == {0.3}


def test_a_contrast_that_cannot_be_judged_stays_in_the_table(made) -> None:
    table = contrasts({"ascent": ("sync", "base"), "typo": ("snyc", "base")}, arms(made), level=0.02)
    assert table.contrasts[1].word.startswith("not judged: no run of arm snyc is here; did you mean sync?")
    assert math.isnan(table.contrasts[1].gradients)
    assert contrasts({"none": ("x", "y")}, []).level is None


def test_other_words_and_raw_numbers_that_mislead(made) -> None:
    raw = made.two_arms({"lambda_max": 0.5}, 8, names=("a", "base"))
    mixed = made.two_arms({"adaptive_trace": 0.5, "balanced_trace": 2.0}, 8, names=("m", "base"))[::2]
    sharper = made.two_arms(2.0, 8, names=("s", "base"))[::2]
    noise = made.two_arms(0.95, 8, names=("n", "base"), spread=0.6)[::2]
    names = {"raw": ("a", "base"), "mixed": ("m", "base"), "sharper": ("s", "base"), "noise": ("n", "base")}
    table = contrasts(names, [*raw, *mixed, *sharper, *noise], level=0.02)
    words = [one.word for one in table.contrasts]
    assert words == ["no difference above 25 %", "mixed", "sharper", "cannot tell"]
    assert table.notes[0].startswith("raw: Raw lambda_max says 0.50")


def test_the_test_loss_of_a_contrast_has_the_interval_of_the_table(made) -> None:
    def steps(low: float):
        return {"steps": [{"step": k, "passes": 1, "test_loss": low} for k in range(1, 51)]}

    runs = []
    for seed in range(6):
        runs += [made.run("a", seed, more=steps(0.05 + 1e-4 * seed)), made.run("b", seed, more=steps(0.06))]
    (one,) = contrasts({"part": ("a", "b")}, runs, level=0.02).contrasts
    assert one.test_loss == pytest.approx(-0.00975)
    assert one.test_loss_differs


BAD = {
    "empty": ({}, {}, "1 to 1000 pairs"),
    "itself": ({"x": ("a", "a")}, {}, "compares a with itself"),
    "level": ({"x": ("a", "b")}, {"level": 0.0}, "level must be"),
}


@pytest.mark.parametrize(("table", "more", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line(table, more, words) -> None:
    with pytest.raises(ConfigError, match=words):
        contrasts(table, [], **more)
