"""Findings: each is true, refuted and open on data made for it."""

from __future__ import annotations

import pytest

from lossscope.reports import overview, sharpness
from lossscope.reports.shared.findings import (
    NOT_RECORDED,
    all_bounds_met,
    bounds_met,
    edge_below_one,
    entropy_raised,
    losses_matched,
    no_negative_curvature,
    precise,
    runs_finished,
    spectra_precise,
)


def changing(table, **changes):
    """Return a row transform that replaces columns of a table where `where` holds."""
    where = changes.pop("where")

    def rows(name, row):
        return {**row, **changes} if name == table and where(row) else row

    return rows


def of(measure, *steps):
    return lambda row: row["measure"] == measure and (not steps or row["step"] in steps)


def test_bounds_are_met_when_every_evaluation_says_so(write_run):
    found = bounds_met([write_run("a")])
    assert (found.outcome, found.numbers) == (True, "met at 8 of 8 evaluations")


@pytest.mark.parametrize(
    ("missed", "outcome", "numbers"),
    [
        ((0,), None, "met at 7 of 7 evaluations; 1 cut by the cap on the recording time"),
        ((0, 8), False, "met at 6 of 7 evaluations; 1 cut by the cap on the recording time"),
    ],
)
def test_an_evaluation_that_the_cap_cut_refutes_no_bound(write_run, missed, outcome, numbers):
    why = "overhead: it would exceed the cap of 10 % of the wall time"
    gaps = [{"step": 0, "instrument": "curvature", "measures": ["density"], "why": why}]
    rows = changing("probes", converged=False, where=of("lambda_max", *missed))
    run = write_run("a", rows=rows, curvature_gaps=gaps)
    found = bounds_met([run])
    assert (found.outcome, found.numbers) == (outcome, numbers)
    assert (all_bounds_met([run]).outcome is False) == (outcome is False)


def test_one_bound_that_was_not_met_is_counted(write_run):
    rows = changing("probes", converged=False, where=of("lambda_max", 8))
    found = bounds_met([write_run("a"), write_run("b", rows=rows)])
    assert (found.outcome, found.numbers) == (False, "met at 15 of 16 evaluations")


def test_steps_without_an_edge_ratio_leave_it_unjudged_unless_another_refutes_it(write_run):
    uphill = write_run("a", rows=changing("probes", value=None, where=of("directional_edge_ratio", 40)))
    below = write_run("b")
    above = write_run("c", rows=changing("probes", value=1.5, where=of("directional_edge_ratio", 40)))
    found = edge_below_one([uphill, below])
    assert found.outcome is None
    assert "1 more without a value" in found.numbers
    assert edge_below_one([below]).outcome is True
    assert edge_below_one([uphill, above]).outcome is False


def test_the_edge_is_judged_in_the_last_quarter_only(write_run):
    early = write_run("a", rows=changing("probes", value=3.0, where=of("directional_edge_ratio", 1, 2, 4, 8, 16)))
    late = write_run("b", rows=changing("probes", value=1.0, where=of("directional_edge_ratio", 40)))
    assert edge_below_one([early]).outcome is True
    found = edge_below_one([early, late])
    assert found.outcome is False
    assert found.numbers == "1 of 4 evaluations at or above 1; largest 1.00 (b, step 40)"


def test_precision_names_the_worst_evaluation(write_run):
    good, bad = write_run("a"), write_run("b", rows=changing("probes", stderr=50.0, where=of("trace", 16)))
    assert precise([good], "trace", "the trace").outcome is True
    found = precise([good, bad], "trace", "the trace")
    assert found.outcome is False
    assert "15 of 16 evaluations; largest 48 % (b, step 16)" in found.numbers


@pytest.mark.parametrize(("value", "outcome"), [(-2.0, False), (-0.1, None), (0.5, True)])
def test_negative_curvature_is_judged_beyond_its_bound(write_run, value, outcome):
    run = write_run(
        "a", rows=changing("probes", value=value, low=value - 0.25, high=value + 0.25, where=of("lambda_min", 40))
    )
    assert no_negative_curvature([run]).outcome is outcome


def test_no_negative_curvature_claims_what_was_found_and_not_what_there_is(write_run):
    # A Ritz value bounds the smallest eigenvalue from above only, so its absence cannot be shown.
    assert "was found" in no_negative_curvature([write_run("a")]).claim


def test_a_finding_states_what_happened(write_run):
    rows = changing("probes", converged=False, where=of("lambda_max", 8))
    met, missed = bounds_met([write_run("a")]), bounds_met([write_run("b", rows=rows)])
    assert (met.mark, met.statement) == ("fine", "λ_max met the error bound that was asked at every evaluation.")
    assert missed.mark == "look"
    assert missed.statement.startswith("λ_max missed the error bound that was asked at some evaluations")
    negative = no_negative_curvature([write_run("c")])
    assert (negative.outcome, negative.mark) == (False, "fine")
    assert negative.statement == "Negative curvature was found at the last evaluation, as is usual in deep networks."
    assert precise([], "trace", "the trace").statement.startswith("Not known from these runs: the relative standard")


def test_no_report_has_a_finding_about_what_no_run_recorded(write_run):
    bare = write_run("a", curvature=False)
    assert not any(NOT_RECORDED in one.numbers for report in (sharpness, overview) for one in report([bare]).findings)


def test_a_spectrum_that_was_not_flattened_is_noticed(write_run):
    lower = changing(
        "spectra",
        entropy_energy=0.3,
        where=lambda row: row["object"] == "orthogonal" and row["tensor"] == "2.weight" and row["step"] == 40,
    )
    assert entropy_raised([write_run("a")]).outcome is True
    found = entropy_raised([write_run("b", rows=lower)])
    assert (found.outcome, found.numbers) == (False, "1 of 2 matrices at the last evaluations")


def test_slices_of_a_batched_parameter_are_matched_one_by_one(write_run):
    def sliced(table, row):
        if table != "spectra" or row["tensor"] != "2.weight":
            return row
        return {**row, "slice": 1, "entropy_energy": 0.2 if row["object"] == "orthogonal" else row["entropy_energy"]}

    assert entropy_raised([write_run("a", rows=sliced)]).outcome is False


def test_an_imprecise_spectrum_is_noticed(write_run):
    assert spectra_precise([write_run("a")]).outcome is True
    rows = changing("spectra", error=0.1, where=lambda row: row["step"] == 20)
    found = spectra_precise([write_run("b", rows=rows)])
    assert found.outcome is False
    assert "5.0 %" in found.numbers


def test_arms_at_different_losses_are_not_matched(write_run):
    same = [write_run("a", "one"), write_run("b", "two")]
    assert losses_matched(same).outcome is True
    rows = changing("probes", value=0.2, where=lambda row: row["step"] == 40 and row["measure"] == "loss")
    found = losses_matched([*same, write_run("c", "three", rows=rows)])
    assert found.source == "probes.parquet: loss"
    assert found.outcome is False
    assert "three 0.2000" in found.numbers


def test_a_live_run_cannot_be_judged_but_a_failed_one_can(write_run):
    done, failed = write_run("a"), write_run("b")
    failed.status = "failed"
    live = write_run("c")
    live.status = "running"
    assert runs_finished([done]).outcome is True
    assert runs_finished([done, live]).outcome is None
    assert runs_finished([done, live, failed]).outcome is False
    assert runs_finished([done, failed]).numbers == "1 of 2; not b (failed)"


def test_without_numbers_nothing_is_judged(write_run):
    empty = [write_run("a", steps=0, curvature=False)]
    checks = (
        bounds_met,
        edge_below_one,
        no_negative_curvature,
        entropy_raised,
        spectra_precise,
        losses_matched,
    )
    assert [check(empty).outcome for check in checks] == [None] * len(checks)
    assert precise(empty, "trace", "the trace").outcome is None


def test_precision_counts_the_whole_model_once_for_each_evaluation_and_only_what_was_asked_of_it(write_run):
    def rows(table, row):
        if row.get("measure") == "adaptive_trace":  # a block of a module
            return {**row, "measure": "trace", "tensor": "0", "converged": False}
        if row.get("measure") == "directional_edge_ratio":  # no bound is asked of it
            return {**row, "measure": "batch_sharpness", "converged": False}
        return row

    found = all_bounds_met([write_run("a", rows=rows)])
    assert (found.outcome, found.numbers) == (True, "3 measures")
    missed = write_run("b", rows=changing("probes", converged=False, where=of("trace", 8, 16)))
    found = all_bounds_met([missed])
    assert (found.outcome, found.numbers) == (False, "trace met 6 of 8")
