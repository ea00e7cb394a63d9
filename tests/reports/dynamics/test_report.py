"""The dynamics report, on synthetic runs."""

from __future__ import annotations

import json
import math
import re

import pyarrow.parquet as pq
import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.schema import TABLES
from lossscope.reports import dynamics, render, sharpness, spectral_entropy
from lossscope.reports.content import Quantity
from lossscope.reports.shared.number_format import quantity_text

NEW = {
    "steps": {"injection_angle", "remainder_rounding"},
    "tensors": {"injection_angle", "remainder"},
    "spectra": {"excess_order", "outside_band", "polar_norm", "polar_cosine"},
}


def rows_of(report, key):
    table = next(table for table in report.tables if table.key == key)
    return [dict(zip((column.key for column in table.columns), row, strict=True)) for row in table.rows]


def changing(table, where=lambda row: True, **changes):
    """Return a row transform that replaces columns of a table where `where` holds."""

    def rows(name, row):
        return {**row, **changes} if name == table and where(row) else row

    return rows


def without(*tables):
    return lambda table, row: None if table in tables else row


def outcomes(*runs):
    """Return the outcome and the numbers of each finding, by a part of its claim."""
    words = {"shear": "shear keeps", "trigger": "trigger fires", "model": "quadratic model"}
    found = dynamics(runs).findings
    return {name: (one.outcome, one.numbers) for name, part in words.items() for one in found if part in one.claim}


def test_everything_holds_on_runs_made_to_hold(dynamic_run):
    found = outcomes(dynamic_run("a"), dynamic_run("b", seed=1), dynamic_run("c", seed=2))
    assert {name: outcome for name, (outcome, _) in found.items()} == dict.fromkeys(found, True)
    assert found["shear"][1] == "ars2-aga: above 0 at lag 1, 5, 20 (over 3 seeds)"
    assert found["trigger"][1].endswith("noise at 50 % (over 3 seeds)")
    assert found["model"][1].startswith("within 10 % at 60 of 60 evaluations of 3 runs; largest at most 5.0 %")


def test_nothing_is_judged_or_listed_without_the_tables(write_run):
    assert outcomes(write_run("a")) == {}


def of_shear(change):
    """Return a row transform that changes the cosines of the shear but not its ceiling."""

    def rows(table, row):
        hit = table == "pairs" and row["object"] == "shear" and row["lag"] > 0
        return {**row, "cosine": change(row)} if hit else row

    return rows


def test_a_shear_that_turns_faster_at_one_lag_refutes_it_and_one_that_is_open_leaves_it_open(dynamic_run):
    faster = dynamic_run("faster", rows=of_shear(lambda row: -0.2 if row["lag"] == 20 else row["cosine"]))
    outcome, numbers = outcomes(faster)["shear"]
    assert outcome is False
    assert "above 0 at lag 5, below 0 at lag 20" in numbers
    same = dynamic_run("same", rows=of_shear(lambda row: 0.3 * math.cos(0.25 * row["lag"])))
    assert outcomes(same)["shear"][0] is None
    assert "inconclusive at lag 1" in outcomes(same)["shear"][1]


def test_few_windows_of_one_seed_leave_the_shear_open_and_as_few_of_several_seeds_do_not(dynamic_run):
    short = [dynamic_run(f"s{seed}", seed=seed, steps=140) for seed in range(4)]  # three windows each
    assert outcomes(short[0])["shear"] == (None, "ars2-aga: inconclusive at lag 1, 5, 20 (one seed only)")
    report = dynamics(short[:1])
    cell = rows_of(report, "memory")[0]["difference"]
    assert (cell.low, cell.high) == (-math.inf, math.inf)
    noise = rows_of(report, "noise_scale")[0]
    assert (noise["signal"].low, noise["signal"].high) == (-math.inf, math.inf)
    assert outcomes(*short)["shear"][1].startswith("ars2-aga: above 0 at lag")


def of_trigger(phi):
    """Return a row transform for a trigger with cap 6 and threshold -0.1, with phi a function of the step."""
    state = {"last": -6}

    def rows(table, row):
        if table != "steps":
            return row
        value = phi(row["step"])
        synced = value < -0.1 or row["step"] - state["last"] >= 6
        state["last"] = row["step"] if synced else state["last"]
        return {**row, "synced": synced, "phi": value, "threshold": -0.1}

    return rows


@pytest.mark.parametrize(
    ("phi", "outcome"),
    [
        (lambda step: -0.2 if step % 2 else 0.05, True),
        (lambda step: 0.2, False),
        (lambda step: -0.2 if step % 20 < 10 else 0.2, None),
        (lambda step: -0.2 if step == 50 else 0.05, None),  # one step tells nothing
    ],
)
def test_the_trigger_is_judged_by_the_sign_of_what_is_beyond_its_threshold(dynamic_run, phi, outcome):
    found, numbers = outcomes(dynamic_run("a", rows=of_trigger(phi)))["trigger"]
    assert found is outcome
    word = {True: "more than under noise", False: "less than under noise", None: "inconclusive"}[outcome]
    assert numbers.startswith(f"ars2-aga: {word}")


def test_a_seed_without_an_audit_leaves_the_trigger_open_and_is_counted(dynamic_run):
    def hole(table, row):
        return None if table == "steps" and row["step"] == 7 else row

    quiet = of_trigger(lambda step: -0.2 if step == 50 else 0.05)
    two = [dynamic_run("a"), dynamic_run("b", seed=1)]
    assert outcomes(*two)["trigger"][0] is True
    for name, rows in {"hole": hole, "quiet": quiet}.items():
        outcome, numbers = outcomes(*two, dynamic_run(name, seed=2, rows=rows))["trigger"]
        assert outcome is None
        assert numbers.endswith("(over 2 seeds, 1 missing)")


def test_the_random_timer_stands_beside_the_trigger_and_is_not_judged(dynamic_run):
    timer = {"mode": "timer", "lambda": 1.0, "k": 6}
    control = dynamic_run("t", "timer", rows=of_trigger(lambda step: -0.2 if step % 3 == 0 else 0.05), trigger=timer)
    outcome, numbers = outcomes(control)["trigger"]
    assert outcome is None
    assert numbers.startswith("timer, random timer: fired at 33 % of the steps before its cap, nominal 16 %")
    outcome, numbers = outcomes(dynamic_run("a"), control)["trigger"]
    assert outcome is True
    assert numbers.startswith("ars2-aga: more than under noise, below at ")
    assert "timer, random timer: fired at 33 %" in numbers
    assert rows_of(dynamics([control]), "trigger")[0]["share"] is None


def at(measures, step=40):
    """Return a row transform that changes some values of one evaluation."""
    return lambda table, row: (
        {**row, **measures[row["measure"]]} if row.get("measure") in measures and row["step"] == step else row
    )


def test_one_evaluation_beyond_ten_percent_refutes_the_model(dynamic_run):
    worse = {"relative_second": {"value": 0.12, "low": 0.12, "high": 0.12}}
    outcome, numbers = outcomes(dynamic_run("a", rows=at(worse)))["model"]
    assert outcome is False
    assert (
        numbers
        == "within 10 % at 19 of 20 evaluations of this run only, outside at 1; largest at most 12 % (a, step 40)"
    )


def test_the_farthest_evaluation_is_that_with_the_largest_bound(dynamic_run):
    exact = {"relative_second": {"value": 0.08, "low": 0.08, "high": 0.08}}
    loose = {"relative_second": {"value": 0.05, "low": 0.01, "high": 0.09}}

    def rows(table, row):
        return at(loose, 80)(table, at(exact, 40)(table, row))

    assert outcomes(dynamic_run("a", rows=rows))["model"][1].endswith("largest at most 9.0 % (a, step 80)")


def test_a_model_whose_terms_cancel_is_not_refuted_by_the_ratio_to_what_is_left(dynamic_run):
    run = dynamic_run("a", rows=at({"trust_ratio": {"value": 5.0, "low": 4.5, "high": 5.5}}))
    assert outcomes(run)["model"][0] is True
    assert rows_of(dynamics([run]), "step_quality")[0]["trust_ratio"].high == 5.0


@pytest.mark.parametrize(("rounding", "outcome"), [(4e-4, True), (6e-4, None)])
def test_rounding_that_may_carry_a_remainder_over_the_line_leaves_it_open(dynamic_run, rounding, outcome):
    # r2 = 0.05 is 5e-4 of terms of 1e-2; the rounding may be all of it, as long as both together stay below a tenth.
    loose = {"relative_second": {"low": max(0.05 - rounding / 1e-2, 0.0), "high": 0.05 + rounding / 1e-2}}
    found, numbers = outcomes(dynamic_run("a", rows=at(loose)))["model"]
    assert found is outcome
    assert ("hidden by rounding at 1" in numbers) is (outcome is None)


@pytest.mark.parametrize(("rounding", "outcome"), [(1e-3, True), (1.5e-3, None)])
def test_a_remainder_that_is_zero_is_known_to_its_rounding(dynamic_run, rounding, outcome):
    zero = {"relative_second": {"value": 0.0, "low": 0.0, "high": rounding / 1.2e-2}}  # of terms of 1.2e-2
    assert outcomes(dynamic_run("a", rows=at(zero)))["model"][0] is outcome


def test_a_change_of_the_loss_below_its_rounding_is_unknown_and_not_small(dynamic_run):
    drowned = at({"trust_ratio": {"value": 0.95, "low": -8.55, "high": 10.45}})
    report = dynamics([dynamic_run("a", rows=drowned)])
    assert rows_of(report, "step_quality")[0]["trust_ratio"].missing == 1
    figure = next(figure for figure in report.figures if figure.key == "trust_ratio")
    assert figure.curves[0].median[:3] == (0.95, None, 0.95)
    assert figure.curves[0].error[0] == pytest.approx(0.95e-4)


@pytest.mark.parametrize("column", ["relative_first", "relative_second"])
def test_a_remainder_below_its_rounding_leaves_its_ratio_unknown(dynamic_run, column):
    rows = changing("probes", lambda row: row["measure"] == column and row["step"] > 200, low=0.0, high=100.0)
    row = rows_of(dynamics([dynamic_run("a", rows=rows)]), "step_quality")[0]
    assert {key: row[key].missing for key in ("trust_ratio", "relative_first", "relative_second")} == {
        "trust_ratio": 0,
        "relative_first": 0,
        "relative_second": 0,
        column: 10,
    }


def test_a_layer_that_left_is_named_and_too_few_samples_are_not_judged(dynamic_run):
    planted = changing("tensors", lambda row: (row["tensor"], row["step"]) == ("0.bias", 300), remainder=0.5)
    left = dynamic_run("left", rows=planted)
    row = rows_of(dynamics([left]), "layers")[0]
    assert (row["layer"], row["step"], row["rose"]) == ("0.bias", 300, "no")
    assert (row["samples"], row["judged"], row["since"]) == (40, 30, 110)
    assert row["ratio"] == pytest.approx(0.5 / 1.5e-2, rel=0.2)
    short = dynamic_run("short", steps=90)
    assert rows_of(dynamics([short]), "layers")[0]["layer"] == "too few samples"


def test_the_memory_by_lag_has_both_directions_their_difference_and_what_is_left_raw(dynamic_run):
    report = dynamics([dynamic_run("a"), dynamic_run("b", "sgd", objects=("gradient",), trigger=None)])
    first = rows_of(report, "memory")[0]
    assert (first["arm"], first["lag"]) == ("ars2-aga", 1)
    assert first["gradient"].value == pytest.approx(math.cos(0.25), abs=0.05)
    assert first["difference"].value == pytest.approx(first["shear"].value - first["gradient"].value)
    assert first["difference"].low < first["difference"].value < first["difference"].high
    assert first["raw_shear"].value == pytest.approx(0.3, abs=0.02)
    other = rows_of(report, "memory")[3]
    assert (other["arm"], other["shear"], other["difference"]) == ("sgd", Quantity(None), Quantity(None))
    gradient, shear, _ = rows_of(report, "directions")
    assert (gradient["windows"], gradient["over"], gradient["half_life"], shear["half_life"]) == (
        10,
        "10 windows",
        "1 to 5",
        "> 20",
    )
    assert gradient["angular_velocity"].value == pytest.approx(math.degrees(0.25), abs=5)
    assert gradient["null_sd"] == pytest.approx(1 / math.sqrt(2000))


def test_of_several_seeds_the_interval_is_over_them_and_said_so(dynamic_run):
    report = dynamics([dynamic_run(f"s{seed}", seed=seed) for seed in range(3)])
    assert rows_of(report, "directions")[0]["over"] == "3 seeds"
    twice = dynamics([dynamic_run("again"), dynamic_run("once more")])
    assert rows_of(twice, "directions")[0]["over"] == "none"
    assert "one seed only" in twice.findings[0].numbers
    assert twice.findings[0].outcome is None
    assert any("95 % t-interval over seeds" in note for note in report.notes)


def test_missing_seeds_stand_below_the_interval_where_a_table_is_narrow(dynamic_run):
    runs = [dynamic_run("a"), dynamic_run("b", seed=1), dynamic_run("c", seed=2, rows=without("pairs"))]
    report = dynamics(runs)
    assert {row["gradient"].missing for row in rows_of(report, "memory")} == {1}
    assert {row["angular_velocity"].missing for row in rows_of(report, "directions")} == {1}
    text = render(report, "text")
    assert "(1 missing)" in text[text.index("Direction autocorrelation by lag") : text.index("Ceiling, half-life")]
    assert "over 2 seeds, 1 missing" in report.findings[0].numbers


def test_the_trigger_has_one_table_with_its_rate_and_sign_test(dynamic_run):
    report = dynamics([dynamic_run("a")])
    assert [table.key for table in report.tables if "phi" in table.key or "trigger" in table.key] == ["trigger"]
    (row,) = rows_of(report, "trigger")
    assert (row["trigger"], row["steps"]) == ("aga, λ = 1, k = 6", "1–400")
    assert 0.5 == row["expected"] < row["share"].low < row["share"].value
    assert 0 < row["chance"] < row["share"].value
    assert row["rate"] == pytest.approx(row["syncs"] / 400, rel=0.02)
    outside, _, lags = row["outside"].partition(" of ")
    assert (int(lags), abs(row["phi_1"]) < 0.2, int(outside) <= 4) == (20, True, True)


def test_a_trigger_with_missing_steps_is_a_gap_with_its_reason(dynamic_run):
    report = dynamics(
        [dynamic_run("a", rows=lambda table, row: None if table == "steps" and row["step"] == 7 else row)]
    )
    assert not [table for table in report.tables if table.key == "trigger"]
    assert any(one.what == "The trigger test of a" and one.how.startswith("Steps or their") for one in report.missing)


def test_noise_alignment_and_injection_have_their_rows(dynamic_run):
    report = dynamics([dynamic_run("a")])
    (noise,) = rows_of(report, "noise_scale")
    assert (noise["windows"], noise["samples"]) == (10, 32)
    assert noise["scale"].value == pytest.approx(noise["noise"].value / noise["signal"].value)
    (alignment,) = rows_of(report, "alignment")
    assert (alignment["top_share"].value, alignment["top_null"]) == (0.125, 1 / 2000)
    assert "top5_share" not in alignment
    injection = rows_of(report, "injection")
    assert [(row["tensor"], row["samples"]) for row in injection[:2]] == [("all", 400), ("0.weight", 40)]
    assert injection[0]["angle"].value == pytest.approx(30)
    assert injection[1]["angle"].value == pytest.approx(20)


def test_five_eigenvectors_stand_beside_five_in_n(dynamic_run):
    def rows(table, row):
        return {**row, "measure": "top5_share"} if row.get("measure") == "gradient_cosine" else row

    (row,) = rows_of(dynamics([dynamic_run("a", rows=rows)]), "alignment")
    assert (row["top5_share"].value, row["top5_null"]) == (0.5, 5 / 2000)


def test_the_recorders_time_is_told_by_instrument(dynamic_run, write_run):
    for report in (dynamics, sharpness):
        (row,) = rows_of(report([dynamic_run(report.__name__)]), "overhead")
        assert row["all"] == 40
        assert row["minibatches"] == row["layers"] == pytest.approx(40 / 7)
    (row,) = rows_of(sharpness([write_run("older")]), "overhead")
    assert row == {"run": "older", "all": 25, "curvature": 20}  # of the others it tells nothing
    assert "overhead" not in [table.key for table in sharpness([write_run("bare", overhead=None)]).tables]


def test_the_figures_are_memory_over_the_lag_phi_and_trust_over_steps(dynamic_run):
    figures = {figure.key: figure for figure in dynamics([dynamic_run("a")]).figures}
    assert list(figures) == ["loss", "memory", "phi", "trust_ratio"]
    memory = figures["memory"]
    assert (memory.x.label, memory.x.unit) == ("lag", "steps")
    assert [(curve.dashed, curve.x) for curve in memory.curves] == [(False, (1, 5, 20)), (True, (1, 5, 20))]
    assert all(low < middle < high for low, middle, high in zip(*memory_of_curve(memory.curves[0]), strict=True))
    assert [curve.dashed for curve in figures["phi"].curves] == [False, True]
    assert figures["trust_ratio"].thresholds[0].value == 1


def memory_of_curve(curve):
    return curve.low, curve.median, curve.high


def test_the_memory_figure_has_each_interval_as_it_is_and_none_where_it_is_open(dynamic_run):
    report = dynamics([dynamic_run("a")])
    figure = next(figure for figure in report.figures if figure.key == "memory")
    cells = [row["gradient"] for row in rows_of(report, "memory")]
    assert [(cell.low, cell.high) for cell in cells] == list(
        zip(figure.curves[0].low, figure.curves[0].high, strict=True)
    )
    assert quantity_text(cells[1]) + " at lag 5" in figure.summary[0]
    assert all(curve.interval for curve in figure.curves)
    short = next(figure for figure in dynamics([dynamic_run("b", steps=60)]).figures if figure.key == "memory")
    assert short.curves[0].low == short.curves[0].high == (None, None, None)
    assert "[\N{MINUS SIGN}∞, ∞] at lag 5" in short.summary[0]


def test_a_run_without_any_of_it_has_no_empty_table_and_says_how_to_get_each(write_run):
    report = dynamics([write_run("a", rows=changing("tensors", energy_rms=None))])
    assert [table.key for table in report.tables] == ["diagnosis", "norms", "overhead", "false_alarms"]
    assert [figure.key for figure in report.figures] == ["loss"]
    how = {one.what: one.how for one in report.missing}
    assert "minibatches=" in how["Direction autocorrelation and noise scale of a"]
    assert "record these runs again" in how["Step quality of a"]
    assert "preset standard or full" in how["Layer-wise remainders of a"]
    assert "lossscope list optimizers" in how["Fisher energy of a"]
    assert "objective=" in dynamics([write_run("bare", curvature=False)]).missing[0].how


def test_a_shear_that_was_injected_without_its_angle_is_missing_and_none_is_not(dynamic_run):
    def rows(table, row):
        return {**row, "injection_angle": None} if "injection_angle" in row else row

    def angles(run):
        return [one for one in dynamics([run]).missing if one.what.startswith("Angle")]

    assert len(angles(dynamic_run("a", rows=rows))) == 1
    assert angles(dynamic_run("b", rows=changing("tensors", injected_norm=None, injection_angle=None))) == []


@pytest.mark.parametrize("format", ["text", "json", "html"])
def test_every_format_has_the_numbers(dynamic_run, format):
    report = dynamics([dynamic_run("<b>a</b>"), dynamic_run("b", "sgd", objects=("gradient",), trigger=None)])
    page = render(report, format)
    assert "1 to 5" in page  # the half-life of the gradient
    assert format != "html" or "<b>" not in page
    if format == "json":
        content = json.loads(page)
        assert content["kind"] == "dynamics"
        assert content["figures"]["memory"]["x"]["label"] == "lag"
        assert content["tables"]["memory"]["rows"][0]["gradient"]["low"] < 1
    if format == "text":
        assert max(map(len, page.splitlines())) <= 120
        squeezed = re.sub(r"\s+", "", page)
        cells = [cell for table in report.tables for row in table.rows for cell in row if isinstance(cell, Quantity)]
        for part in (part for cell in cells for part in quantity_text(cell).replace(" [", "\n[").split("\n")):
            assert part.replace(" ", "") in squeezed


def test_an_interval_without_ends_says_so(dynamic_run):
    report = dynamics([dynamic_run("a", steps=60)])  # one window
    assert rows_of(report, "memory")[0]["gradient"].high == math.inf
    assert "[\N{MINUS SIGN}∞, ∞]" in render(report, "text")
    assert json.loads(render(report, "json"))["tables"]["memory"]["rows"][0]["gradient"]["high"] is None


def test_the_entropy_report_has_newton_schulz_and_the_order_beyond_noise(dynamic_run):
    report = spectral_entropy([dynamic_run("a"), dynamic_run("b", seed=1)])
    (row,) = rows_of(report, "newton_schulz")
    assert row["matrices"] == 4
    assert (row["outside_band"].value, row["condition"].value) == (0.125, 4.0)
    assert (row["polar_norm"].value, row["polar_cosine"].value) == (0.875, 0.99)
    order = {one["matrix"]: one for one in rows_of(report, "order")}
    assert list(order) == ["mean of all", "0.weight", "2.weight"]
    assert order["0.weight"]["null"] == pytest.approx(1.8)
    for key, value in {"own": 0.3, "batch": 0.2, "pair": 0.4, "infinite": 0.6}.items():
        assert order["mean of all"][key].value == pytest.approx(value, abs=0.02)
        assert order["mean of all"][key].low < order["mean of all"][key].value
    assert order["mean of all"]["samples"] == 20
    assert [table.key for table in report.tables] == [
        "diagnosis",
        "entropy",
        "condition",
        "newton_schulz",
        "matrices",
        "order",
        "norms",
        "tensors",
        "false_alarms",
    ]


def of_schema_2(run):
    """Return the run as schema 2 wrote it: without the newer table and columns."""
    (run.path / "pairs.parquet").unlink()
    for name, columns in NEW.items():
        path = run.path / f"{name}.parquet"
        table = pq.read_table(path).drop_columns(sorted(columns))
        pq.write_table(table, path)
    text = (run.path / "run.json").read_text()
    (run.path / "run.json").write_text(re.sub(r'"schema_version": \d+', '"schema_version": 2', text))
    return Run.open(run.path)


def test_no_interval_of_an_order_reaches_beyond_that_of_a_single_direction(dynamic_run):
    def rows(table, row):
        if table != "spectra" or row["object"] != "batch_gradient":
            return row
        order = 1.79 if row["step"] % 80 else 0.9  # of at most 1.8, the entropy of noise
        return {**row, "excess_order": order, "entropy_energy": (1.8 - order) / math.log(8)}

    for row in rows_of(spectral_entropy([dynamic_run("a", rows=rows, steps=200)]), "order"):
        assert row["null"] == pytest.approx(1.8)
        assert row["batch"].value < row["batch"].high == pytest.approx(1.8)


def test_a_seed_without_spectra_counts_as_missing_in_the_order(dynamic_run):
    bare = dynamic_run("c", seed=2, rows=without("spectra"))
    report = spectral_entropy([dynamic_run("a"), dynamic_run("b", seed=1), bare])
    assert {row["own"].missing for row in rows_of(report, "order")} == {1}


@pytest.mark.parametrize("report", [dynamics, sharpness, spectral_entropy])
def test_a_run_of_schema_2_is_reported_with_gaps(dynamic_run, report):
    assert all(NEW[table] <= {column.name for column in TABLES[table]} for table in NEW)
    old = of_schema_2(dynamic_run("old"))
    made = report([old, dynamic_run("new", "other")])
    assert made.subtitle.startswith("2 runs")
    for format in ("text", "json"):
        assert render(report([old]), format)
    if report is dynamics:
        assert any(one.what == "Direction autocorrelation and noise scale of old" for one in made.missing)
        assert {row["arm"] for row in rows_of(made, "memory")} == {"other"}
