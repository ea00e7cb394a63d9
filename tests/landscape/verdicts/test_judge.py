"""Verdicts on `flatter`: every status, reason and note, and planted effects found as what they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lossscope.landscape.errors import ConfigError, RunError
from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.judge import check, compare, judge
from lossscope.landscape.verdicts.verdict import Verdict

HALF = {"balanced_lambda_max": 2.0, "balanced_trace": 2.0}


def claim(**keys: Any) -> Claim:
    usual = {"id": "C1", "text": "a is flatter", "kind": "flatter", "a": ("a",), "b": ("b",), "level": 0.02}
    return Claim(**{**usual, **keys})


def codes(verdict: Verdict) -> set[str]:
    return {note.code for note in verdict.notes}


def reasons(verdict: Verdict) -> list[str]:
    return [reason.code for reason in verdict.reasons]


STATUSES = {
    "flatter": (0.5, 0.05, "SUPPORTED", "a is flatter than b on all four measures, by at least 4"),
    "flatter, small": (
        0.9,
        0.02,
        "SUPPORTED",
        "a is flatter than b on all four measures, but by less than 25 % on each",
    ),
    "sharper": (2.0, 0.05, "CONTRADICTED", "a is sharper than b on all four measures, by at least 9"),
    "sharper, small": (1.1, 0.02, "CONTRADICTED", "a is sharper than b on all four measures, but by less than 25 %"),
    "equal": (1.0, 0.1, "EQUIVALENT", "a and b differ by less than 25 % on all four measures ("),
    "equal, one way": (
        {"adaptive_trace": 0.93},
        0.06,
        "EQUIVALENT",
        "a and b differ by less than 25 % on all four measures; if anything a is flatter (1 of 4)",
    ),
    "both ways": (
        {"adaptive_trace": 0.5, "adaptive_lambda_max": 0.5, **HALF},
        0.05,
        "MIXED",
        "It depends on what flat means: a is flatter on (worst, relative; average, relative), and sharper on (worst, "
        "balanced; average, balanced)",
    ),
    "one way only": ({"adaptive_trace": 0.5}, 0.05, "MIXED", "flatter on (average, relative), and no different on ("),
    "noise": (0.95, 0.5, "INCONCLUSIVE", "10 pairs cannot tell: "),
}


@pytest.mark.parametrize(("ratios", "spread", "status", "words"), STATUSES.values(), ids=STATUSES)
def test_a_planted_effect_has_its_status_and_sentence(made, ratios, spread, status, words) -> None:
    found = judge(claim(), made.two_arms(ratios, 10, spread=spread))
    assert found.status == status
    assert words in found.sentence
    if status != "INCONCLUSIVE":
        assert "(digits-mlp, loss 0.02, 10 pairs)." in found.sentence
    assert found.small == ("less than 25 % on each" in found.sentence)
    for row in found.rows:
        planted = ratios if isinstance(ratios, float) else ratios.get(row.measure, 1.0)
        assert row.ratio == pytest.approx(planted, rel=1e-9)
        assert row.low < row.ratio < row.high
        assert row.wins == sum(d < 0 for d in row.differences)
    assert [row.counts for row in found.rows] == [True] * 4 + [False]


def test_at_least_is_the_interval_end_nearest_one_rounded_down(made) -> None:
    found = judge(claim(), made.two_arms(0.5, 10))
    worst = max(row.high for row in found.rows if row.counts)
    assert f"by at least {math.floor(100 * (1 - worst))} %" in found.sentence
    assert found.figures["weakest"]["ratio"] == pytest.approx(0.5)


def test_an_undecided_claim_says_which_effect_and_how_many_pairs(made) -> None:
    found = judge(claim(), made.two_arms(0.95, 10, spread=0.5))
    assert "pairs would, if the effect is what it seems." in found.sentence
    assert "in 80 of 100 tries" in found.change[0]


def test_five_pairs_are_too_few_and_one_decides_nothing(made) -> None:
    five = judge(claim(), made.two_arms(0.5, 5))
    assert (five.status, reasons(five), five.pairs) == ("NOT_JUDGED", ["TOO_FEW_PAIRS"], {"digits-mlp": 5})
    assert "5 pairs on digits-mlp, 6 are needed: five equal signs come by chance once in 16." in five.sentence
    assert all(row.word == "flatter" for row in five.rows)  # shown, though nothing is judged
    one = compare("a", "b", made.two_arms(0.5, 1))
    assert "decides nothing: seeds alone differ by about 10 %" in one.sentence
    assert judge(claim(), made.two_arms(0.5, 6)).status == "SUPPORTED"


def test_two_runs_without_seeds_give_the_table_without_intervals(made) -> None:
    a, b = made.two_arms(0.5, 1, spread=0, seeds=None)
    found = compare(a, b)
    assert (found.status, reasons(found)) == ("NOT_JUDGED", ["TOO_FEW_PAIRS"])
    assert [row.ratio for row in found.rows] == pytest.approx([0.5] * 5)
    assert all(math.isnan(row.low) and math.isnan(row.high) for row in found.rows)
    assert found.figures["cost"]["digits-mlp"]["a-s0"]["n"] == 1


def test_identical_runs_are_equivalent_and_named_so(made) -> None:
    found = judge(claim(), made.two_arms(1.0, 6, spread=0))
    assert found.status == "EQUIVALENT"
    assert reasons(found) == ["IDENTICAL"]
    assert all((row.low, row.ratio, row.high) == (1, 1, 1) for row in found.rows)


def test_a_pair_that_misses_the_level_is_never_dropped(made) -> None:
    """Nine of ten pairs agree, and still nothing is supported: the tenth may differ just because it is slow."""
    runs = made.two_arms(0.5, 10)
    runs[7] = made.run("b", 3, losses=(2.0, 0.8, 0.3, 0.08, 0.03))
    found = judge(claim(), runs)
    assert (found.status, reasons(found)) == ("INCONCLUSIVE", ["MISSING_LEVEL"])
    assert found.sentence.startswith("1 of 10 pairs never reached loss 0.02 (b-s3: lowest 0.03). Train them longer")
    assert "`lossscope train --resume --steps 100`), or claim at 0.03, which all reach." in found.sentence
    assert all((row.word, row.n, math.isnan(row.ratio)) == ("open", 9, True) for row in found.rows)
    assert all(math.isnan(row.differences[3]) and row.reasons[0].runs == ("b-s3",) for row in found.rows)
    assert judge(claim(level="lowest"), runs).status == "SUPPORTED"
    assert judge(claim(level="lowest"), runs).level == 0.03


def test_a_failed_run_that_ended_early_counts_as_a_pair(made) -> None:
    runs = made.two_arms(0.5, 10)
    runs[0] = made.run("a", 0, losses=(2.0,))
    assert (judge(claim(), runs).status, judge(claim(), runs).pairs) == ("INCONCLUSIVE", {"digits-mlp": 10})


GAPS = {
    "missing": (None, "NOT_MEASURED", "have no value"),
    "negative": (-1.0, "NOT_POSITIVE", "have a value that is not above 0"),
}


@pytest.mark.parametrize(("number", "code", "words"), GAPS.values(), ids=GAPS)
def test_a_gap_in_one_measure_opens_its_row_alone(made, number, code, words) -> None:
    def changed(row):
        return {**row, "value": number} if row["measure"] == "adaptive_trace" and row["step"] == 50 else row

    runs = made.two_arms(0.5, 10)
    runs[0] = made.run("a", 0, scale=0.5, changed=changed)
    found = judge(claim(), runs)
    assert (found.status, reasons(found)) == ("INCONCLUSIVE", [code])
    assert [row.word for row in found.rows] == ["flatter", "open", "flatter", "flatter", "flatter"]
    assert f"1 of 10 pairs {words} at loss 0.02 (a-s0: " in found.sentence


def test_relative_rows_are_open_where_no_run_has_them_and_balanced_ones_are_left_out(made) -> None:
    found = judge(claim(), made.two_arms(0.5, 6, measures=("adaptive_trace", "lambda_max")))
    assert [(row.label, row.word) for row in found.rows] == [
        ("worst, relative", "open"),
        ("average, relative", "flatter"),
        ("raw lambda_max", "flatter"),
    ]
    assert found.status == "INCONCLUSIVE"
    assert "RELATIVE_ONLY" in codes(found)
    two = judge(claim(), made.two_arms(0.5, 6, measures=("adaptive_trace", "adaptive_lambda_max")))
    assert (two.status, "on both measures" in two.sentence) == ("SUPPORTED", True)
    assert "RELATIVE_ONLY" in codes(two)
    asked = judge(claim(measures=("adaptive_trace",)), made.two_arms(0.5, 6))
    assert "flatter than b on average, relative, by at least" in asked.sentence


def test_the_raw_row_never_counts_and_is_contradicted_in_words(made) -> None:
    found = judge(claim(), made.two_arms({name: 0.5 for name in made.measures[:4]} | {"lambda_max": 2.0}, 10))
    assert found.status == "SUPPORTED"
    assert found.figures["raw_says"].startswith("Raw numbers say the opposite: raw lambda_max 2.00")
    misled = judge(claim(), made.two_arms({"lambda_max": 0.5}, 10))
    assert misled.status == "EQUIVALENT"
    assert misled.figures["raw_says"].startswith("Raw lambda_max says 0.50 and would have misled")
    assert judge(claim(), made.two_arms(0.5, 10)).figures["raw_says"] == ""


def wide(made: Any) -> list[Any]:
    return made.two_arms(0.5, 6, losses=(2.0, 0.3, 0.005))


def noisy(made: Any) -> list[Any]:
    return made.two_arms(0.5, 6, changed=lambda row: {**row, "stderr": 0.2 * row["value"]})


def unconverged(made: Any) -> list[Any]:
    return made.two_arms(0.5, 6, changed=lambda row: {**row, "converged": row["measure"] != "adaptive_trace"})


def unpaired(made: Any) -> list[Any]:
    return [*made.two_arms(0.5, 6), made.run("a", 99)]


def lavish(made: Any) -> list[Any]:
    return made.two_arms(0.5, 6, a={"passes": 3}, b={"passes": 2})


def one_ascends(made: Any) -> list[Any]:
    return made.two_arms(0.5, 6, a={"passes": 2})


def level_sensitive(made: Any) -> list[Any]:
    """Return arms that differ below a loss of 0.2 only."""

    def changed(row):
        late = row["step"] >= 30 and row["measure"] not in ("loss", "train_loss")
        return {**row, "value": 0.3 * row["value"]} if late else row

    return made.two_arms(1.0, 6, a={"changed": changed})


NOTES: dict[str, tuple[Callable[[Any], list[Any]], str, str]] = {
    "wide bracket": (wide, "WIDE_BRACKET", "more than a factor 8"),
    "noisy": (noisy, "NOISY_MEASURE", "more products would help"),
    "unconverged": (unconverged, "UNCONVERGED", "12 of adaptive_trace"),
    "unpaired": (unpaired, "UNPAIRED", "a-s99"),
    "cost": (lavish, "UNEQUAL_COST", "a took 50 % more gradients than b up to that loss (digits-mlp)"),
    "level": (level_sensitive, "LEVEL_SENSITIVE", "EQUIVALENT at 0.5"),
    "one task": (wide, "ONE_TASK", "digits-mlp"),
    "one rate": (wide, "ONE_RATE", "No second learning rate of b was tried"),
}


@pytest.mark.parametrize(("runs", "code", "words"), NOTES.values(), ids=NOTES)
def test_every_note_is_provoked_and_changes_nothing(made, runs, code, words) -> None:
    found = judge(claim(), runs(made))
    assert found.status == "SUPPORTED"
    assert any(note.code == code and words in note.text for note in found.notes), found.notes


def test_notes_are_silent_on_what_is_well(made) -> None:
    assert codes(judge(claim(), made.two_arms(0.5, 6))) == {"ONE_TASK", "ONE_RATE"}
    assert "UNEQUAL_COST" not in codes(judge(claim(), one_ascends(made)))


def test_a_second_task_and_a_second_rate_are_tried(made) -> None:
    conv = {"config": {"workload": "digits-conv"}}
    runs = [*made.two_arms(0.5, 6), *made.two_arms(0.5, 7, **conv)]
    faster = [made.run("b-2lr", seed, config={"lr": 2e-3, "optimizer": "b"}) for seed in range(6)]
    faster += [made.run("b-2lr", seed, config={"lr": 2e-3, "optimizer": "b", **conv["config"]}) for seed in range(7)]
    found = judge(claim(b=("b", "b-2lr")), [*runs, *faster])
    assert (found.status, codes(found) & {"ONE_TASK", "ONE_RATE"}) == ("SUPPORTED", set())
    assert len([row for row in found.rows if row.counts]) == 16
    assert "a is flatter than b and b-2lr on all four measures" in found.sentence
    assert "(digits-mlp and digits-conv, loss 0.02, 6 and 7 pairs)" in found.sentence
    assert found.pairs == {"digits-mlp": 6, "digits-conv": 7}
    assert found.change == ()
    assert judge(claim(), [*runs, *made.two_arms(0.5, 1, config={"workload": "text"})]).status == "NOT_JUDGED"
    assert len(judge(claim(tasks=("digits-conv",)), runs).rows) == 5


def test_a_claim_that_is_younger_than_its_runs_says_so(made) -> None:
    runs = made.two_arms(0.5, 6)
    young, old = ("2026-02-01T00:00:00+00:00", "2025-12-31T00:00:00+00:00")
    found = judge(claim(modified=young, file="claims.toml", file_hash="ab"), runs)
    assert "CLAIM_AFTER_RUNS" in codes(found)
    assert found.figures["file"] == {"path": "claims.toml", "sha256": "ab", "modified": young}
    assert "CLAIM_AFTER_RUNS" not in codes(judge(claim(modified=old), runs))


def test_unknown_arms_and_tasks_are_named_with_the_nearest(made) -> None:
    runs = made.two_arms(0.5, 6, names=("sync", "base"))
    with pytest.raises(ConfigError, match=r"no run of arm snyc is here; did you mean sync\?"):
        compare("snyc", "base", runs)
    found = judge(claim(a=("snyc",), b=("base",)), runs)
    assert (found.status, reasons(found)) == ("NOT_JUDGED", ["NO_PAIRS"])
    assert found.sentence == "No run of arm snyc is here; did you mean sync?"
    other = judge(claim(tasks=("modadd-59",)), runs)
    assert "No run of modadd-59 is here; tasks here: digits-mlp" in other.sentence


BAD = {
    "itself": (("a", "a"), {}, "cannot be compared with itself"),
    "level": (("a", "b"), {"level": -1.0}, "level must be a training loss above 0"),
    "level, infinite": (("a", "b"), {"level": math.inf}, "level must be a training loss above 0"),
    "margin": (("a", "b"), {"margin": 1.0}, "margin must be a ratio above 1"),
}


@pytest.mark.parametrize(("sides", "more", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line(made, sides, more, words) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        compare(*sides, made.two_arms(0.5, 6), **more)
    assert "\n" not in str(error.value)


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(RunError, match="no run"):
        compare([], [])


def test_groups_of_runs_are_paired_though_their_arms_have_one_name(made) -> None:
    runs = made.two_arms(0.5, 6)
    found = compare(runs[::2], runs[1::2])
    assert found.status == "SUPPORTED"
    same = [made.run("a", seed, name=f"other-{seed}") for seed in range(6)]
    assert compare(runs[::2], same).rows[0].a == "a (A)"


def test_a_run_without_any_loss_has_no_level(made) -> None:
    runs = made.two_arms(0.5, 6, changed=lambda row: None if row["measure"] == "loss" else row)
    found = compare("a", "b", runs)
    assert (found.status, reasons(found)) == ("NOT_JUDGED", ["NOT_MEASURED"])
    assert judge(claim(), runs).status == "INCONCLUSIVE"


def test_figures_hold_what_pages_draw(made) -> None:
    def changed(row):
        if row["measure"] == "lambda_max":
            return {**row, "measure": "sigma_star", "value": 0.3, "stderr": 0.01}
        if row["measure"] == "balanced_trace":
            return {**row, "measure": "test_loss", "value": row["value"]}
        return row

    found = judge(claim(), made.two_arms(0.5, 6, spread=0, changed=changed)).figures
    assert found["sigma_star"]["digits-mlp"]["a"]["value"] == pytest.approx(0.3)
    (line,) = found["test_loss"]
    assert line["difference"] < 0
    assert line["low"] == line["high"] == pytest.approx(line["difference"])
    assert len(found["series"]["digits-mlp"]["b"]) == 6
    assert found["series"]["digits-mlp"]["b"][0]["loss"] == list(made.losses)
    assert found["cost"]["digits-mlp"]["a"]["gradients"] == pytest.approx(found["cost"]["digits-mlp"]["a"]["steps"])
    assert [one["level"] for one in found["other_levels"]] == [0.5, 0.1]


def test_a_test_loss_on_another_grid_of_steps_is_interpolated(made) -> None:
    rows = [{"step": step, "passes": 1, "test_loss": 0.001 * step if step % 10 == 0 else None} for step in range(1, 51)]
    found = judge(claim(), made.two_arms(0.5, 6, more={"steps": rows})).figures
    step = found["cost"]["digits-mlp"]["a"]["steps"]
    assert found["test_loss"][0]["a_value"] == pytest.approx(0.001 * step)


def test_a_missing_test_loss_leaves_no_difference(made) -> None:
    rows = [{"step": step, "passes": 1, "test_loss": 0.5} for step in range(1, 51)]
    runs = made.two_arms(0.5, 6, more={"steps": rows})
    runs[0] = made.run("a", 0, scale=0.5)
    (line,) = judge(claim(), runs).figures["test_loss"]
    assert math.isnan(line["difference"])
    assert line["n"] == 5


def test_several_claims_are_judged_in_their_order(made) -> None:
    found = check([claim(), claim(id="C2", a=("b",), b=("a",))], made.two_arms(0.5, 6))
    assert [(one.claim, one.status) for one in found] == [("C1", "SUPPORTED"), ("C2", "CONTRADICTED")]


def test_an_untestable_claim_gives_its_reason(made) -> None:
    found = judge(Claim("C15", "scales", "untestable", reason="needs accelerators"), [])
    assert (found.status, reasons(found)) == ("NOT_JUDGED", ["NOT_TESTABLE"])
    assert found.sentence == "Not testable: needs accelerators."
