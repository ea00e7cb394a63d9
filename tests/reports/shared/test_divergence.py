"""Divergence in reports: the first line, the first finding, and no claim held over missing evaluations."""

from __future__ import annotations

import json
import math
import re

import pytest

from lossscope import reports
from lossscope.reports import render
from lossscope.reports.shared.findings import (
    all_bounds_met,
    bounds_met,
    edge_below_one,
    losses_matched,
    no_negative_curvature,
    precise,
)

REPORTS = ("overview", "sharpness", "spectral_entropy", "flatness", "dynamics")


def rising(table, row):
    return {**row, "loss": 2.3 if row["step"] < 12 else 70.0} if table == "steps" else row


def lost(table, row):
    if table == "probes" and row["step"] > 2:
        return None
    return {**row, "loss": math.nan} if table == "steps" and row["step"] > 2 else row


@pytest.mark.parametrize("report", REPORTS)
def test_the_first_line_of_every_report_says_which_run_diverged_and_at_which_step(write_run, report):
    runs = [write_run("good"), write_run("up", rows=rising), write_run("gone", rows=lost)]
    words = (
        "Diverged: up: the loss rose far above its start at step 12 (start 2.300, highest 70.00, end 70.00); "
        "gone: the loss stopped being finite at step 3 (before: 1.000)"
    )
    made = getattr(reports, report)(runs)
    lines = render(made, "text").splitlines()
    assert " ".join(lines[: lines.index("") if "" in lines else 3]).startswith(words[:60])
    assert " ".join(" ".join(lines).split()).startswith(words)
    content = json.loads(render(made, "json"))
    assert content["alert"] == words
    first, *others = content["findings"]
    assert (first["claim"][:35], first["outcome"]) == ("The loss of every run stayed finite", False)
    assert not [one["claim"] for one in others if one["outcome"]]


def test_the_first_line_of_a_page_says_it_and_the_rule_is_on_the_page(write_run):
    page = render(reports.flatness([write_run("up", rows=rising)]), "html")
    body = page.split("<body>")[1]
    assert re.search(r"<header>\s*<p class=\"alert\"", body)
    assert "start + 2 |start| + 1 or 1000 times the start" in body


def test_without_divergence_there_is_no_such_line_and_the_finding_holds(write_run):
    made = reports.flatness([write_run("good")])
    assert made.alert == ""
    assert render(made, "text").startswith("Flatness\n")
    assert (made.findings[-1].claim[:35], made.findings[-1].outcome) == ("The loss of every run stayed finite", True)


def gaps(*steps, measures=None):
    entry = {"instrument": "curvature", "why": "not symmetric", **({"measures": measures} if measures else {})}
    return [{"step": step, **entry} for step in steps]


def without(measure, step):
    return lambda table, row: None if table == "probes" and (row["measure"], row["step"]) == (measure, step) else row


CLAIMS = {
    "lambda_max": bounds_met,
    "trace": lambda runs: precise(runs, "trace", "the trace"),
    "directional_edge_ratio": edge_below_one,
    "loss": losses_matched,
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("measure", CLAIMS)
def test_no_finding_is_held_over_an_evaluation_that_is_missing(write_run, measure, named):
    judge, other = CLAIMS[measure], write_run("b", "ars2-sync")
    assert judge([write_run("a"), other]).outcome is True
    listed = gaps(40, measures=[measure] if named else None)
    found = judge([write_run("c", rows=without(measure, 40), curvature_gaps=listed), other])
    assert found.outcome is None
    assert "missing at 1 more" in found.numbers


def test_a_missing_measure_leaves_the_findings_on_others_alone(write_run):
    run = write_run("a", rows=without("log_fisher_rao", 40), curvature_gaps=gaps(40, measures=["log_fisher_rao"]))
    assert bounds_met([run]).outcome is True
    assert all_bounds_met([run]).outcome is None
    (missing,) = [one for one in reports.flatness([run]).missing if "log_fisher_rao" in one.what]
    assert missing.what == "log_fisher_rao of a at 1 evaluation (step 40)"


def test_a_value_that_is_missing_at_the_last_evaluation_leaves_negative_curvature_open(write_run):
    def above(table, row):
        low = table == "probes" and row["measure"] == "lambda_min"
        return {**row, "value": None if row["step"] == 40 else 1.0, "low": 0.9, "high": 1.1} if low else row

    assert no_negative_curvature([write_run("a", rows=above)]).outcome is None


def test_the_edge_is_not_held_where_the_loss_rose(write_run):
    found = edge_below_one([write_run("up", rows=rising)])
    assert found.outcome is None
    assert "the loss of up rose far above its start" in found.numbers


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"curvature_samples": 512, "training_samples": 1437},
            "Curvature is measured on 512 of 1437 training samples.",
        ),
        ({"curvature_samples": 1437, "training_samples": 1437}, "Curvature is measured on all 1437 training samples."),
        ({"config": {"curvature_samples": 64}}, "Curvature is measured on 64 samples."),
        ({}, None),
    ],
)
def test_a_report_says_on_how_many_samples_the_curvature_was_measured(write_run, facts, words):
    notes = reports.flatness([write_run("a", **facts)]).notes
    assert [note for note in notes if note.startswith("Curvature is measured on")] == ([words] if words else [])
