"""The flatness report."""

from __future__ import annotations

import pytest

from lossscope.reports import flatness
from lossscope.reports.content import Cloud, Quantity


def test_each_run_has_its_invariants_the_loss_they_were_taken_at_and_its_norm(demo_runs):
    table = flatness(demo_runs).tables[0]
    row = dict(zip((column.key for column in table.columns), table.rows[1], strict=True))
    assert row["adaptive_trace"] == Quantity(4.0, error=0.125, low=3.75, high=4.25)
    assert row["log_fisher_rao"].value == 0.7
    assert row["loss"] == pytest.approx(0.06)
    assert row["weight_norm"] == 6.0


def test_the_rest_of_the_panel_is_named_as_missing(demo_runs):
    what = [missing.what for missing in flatness(demo_runs).missing]
    assert [words.split()[0] for words in what] == ["Logit-normalized", "Relative", "Sigma"]


def test_no_comparison_is_made_and_the_reason_is_given(demo_runs):
    assert any("not at matched train loss" in note for note in flatness(demo_runs).notes)


def test_the_adaptive_trace_is_drawn_over_the_loss_and_not_over_steps(demo_runs):
    figure = flatness(demo_runs).figures[0]
    assert isinstance(figure, Cloud)
    assert figure.x.label == "train loss"
    assert len(figure.points[0].x) == 16  # eight evaluations of two seeds
    assert figure.points[0].y[-1] == 4.0
    assert figure.points[0].error[-1] == 0.25
