"""Pairs: runs that differ in the optimizer alone; everything else is named and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.verdicts.judge import compare
from lossscope.landscape.verdicts.pairs import arms_of, matchup, resolve, seed_name


def test_runs_pair_up_by_seeds_data_and_batch_size(made) -> None:
    a = [made.run("a", seed) for seed in (2, 0, 1)]
    b = [made.run("b", seed) for seed in (1, 0, 3)]
    found = matchup("digits-mlp", "a", "b", a, b)
    assert [(one.name, one.a.name, one.b.name) for one in found.pairs] == [("0", "a-s0", "b-s0"), ("1", "a-s1", "b-s1")]
    assert found.unpaired == ("a-s2", "b-s3")


def test_two_runs_of_one_arm_with_equal_seeds_are_refused_by_name(made) -> None:
    runs = [*made.two_arms(0.5, 6), made.run("a", 3, name="again")]
    with pytest.raises(RunError, match=r"runs a-s3 and again are both a with seeds 3 .*leave one out"):
        compare("a", "b", runs)


ALIKE = {
    "optimizer": {"config": {"optimizer": "other"}},
    "rate": {"config": {"lr": 0.5}},
    "options": {"config": {"options": {"rho": 0.5}}},
    "length": {"config": {"steps": 999}},
    "what is recorded": {"config": {"preset": "full", "evaluations": 3, "measures": ["x"], "threads": 1}},
    "a setting that the other did not record": {"config": {"new": 1}},
}


@pytest.mark.parametrize("facts", ALIKE.values(), ids=ALIKE)
def test_settings_of_the_optimizer_and_of_the_record_may_differ(made, facts) -> None:
    assert compare("a", "b", made.two_arms(0.5, 6, b=facts)).status == "SUPPORTED"


DIFFERENT = {
    "batch size": ({"config": {"batch_size": 32}}, "batch_size = 64, b with 32"),
    "augmentation": ({"config": {"augmentation": "flip"}}, "augmentation = none, b with flip"),
    "data": ({"data_hash": "other"}, "data_hash = data0, b with other"),
    "model": ({"model": {"parameters": 100}}, "parameters = 99, b with 100"),
    "precision": ({"dtype": "float64"}, "dtype = float32, b with float64"),
}


@pytest.mark.parametrize(("facts", "words"), DIFFERENT.values(), ids=DIFFERENT)
def test_any_other_difference_is_not_judged_and_named(made, facts, words) -> None:
    runs = made.two_arms(0.5, 6, a={"config": {"augmentation": "none"}, "dtype": "float32"}, b=facts)
    found = compare("a", "b", runs)
    assert found.status == "NOT_JUDGED"
    assert [one.code for one in found.reasons] == ["DIFFERENT_SETUP"]
    assert found.sentence.startswith(f"a was trained with {words}")
    assert found.rows == ()


def test_runs_without_seeds_or_without_common_seeds_have_no_pairs(made) -> None:
    for runs in (
        made.two_arms(0.5, 6, seeds=None),
        [*(made.run("a", seed) for seed in range(6)), *(made.run("b", seed) for seed in range(6, 12))],
    ):
        found = compare("a", "b", runs)
        assert (found.status, [one.code for one in found.reasons]) == ("NOT_JUDGED", ["NO_PAIRS"])
        assert "share no seeds, split and data" in found.sentence
    assert "Recorder(..., seeds=...)" in compare("a", "b", made.two_arms(0.5, 6, seeds=None)).sentence


def test_an_arm_with_runs_of_different_settings_must_be_named_fully(made) -> None:
    runs = [made.run("a", 0), made.run("a", 1, config={"lr": 0.5}), made.run("b", 0)]
    with pytest.raises(ConfigError, match=r"arm a has runs of different settings: a \(lr=0.001\), a \(lr=0.5\)"):
        compare("a", "b", runs)
    assert [run.name for run in resolve("a (lr=0.5)", arms_of(runs)["digits-mlp"])] == ["a-s1"]


def test_runs_of_one_arm_may_be_of_different_length(made) -> None:
    runs = [made.run("a", seed, config={"steps": 60 + seed}) for seed in range(3)]
    assert list(arms_of(runs)["digits-mlp"]) == ["a"]


def test_seeds_that_differ_are_named_one_by_one(made) -> None:
    assert seed_name(made.run(seeds={"init": 0, "split": 1, "order": 2})) == "init 0, split 1, order 2"


def test_a_hash_is_short_in_a_message_and_explained(made) -> None:
    hashes = [{"data_hash": letter * 64} for letter in "01"]
    sentence = compare("a", "b", made.two_arms(0.5, 6, a=hashes[0], b=hashes[1])).sentence
    assert "data_hash = 00000000…, b with 11111111…, other data or another split: " in sentence


def test_runs_of_one_name_are_told_apart_by_their_folders(made) -> None:
    runs = made.two_arms(0.5, 6)
    twin = made.run("a", 3)
    twin.path = Path("elsewhere/a-s3")
    with pytest.raises(RunError, match=r"runs a-s3 and elsewhere/a-s3 are both a with seeds 3"):
        compare("a", "b", [*runs, twin])
