"""The spectral entropy report."""

from __future__ import annotations

import pytest

from lossscope.reports import spectral_entropy
from lossscope.reports.content import Quantity


def table_of(report, key):
    return next(table for table in report.tables if table.key == key)


def test_every_object_has_a_row_per_arm_with_mean_and_range(demo_runs):
    rows = {row[:2]: row for row in table_of(spectral_entropy(demo_runs), "entropy").rows}
    assert len(rows) == 12
    _, _, matrices, _, energy, nuclear, stable, effective = rows["A, before Newton-Schulz", "ars2-sync"]
    assert matrices == 4  # two matrices of two seeds
    assert energy == Quantity(0.8, low=0.8, high=0.8)
    assert nuclear.value == pytest.approx(0.81)
    assert (stable.value, effective.value) == (2.5, 2.75)


def test_a_singular_matrix_has_no_condition_and_is_counted(demo_runs):
    rows = {row[:2]: row[2:] for row in table_of(spectral_entropy(demo_runs), "condition").rows}
    assert rows["gradient", "ars2-base"][:2] == (Quantity(None), 4)
    assert rows["weight", "ars2-base"][:2] == (Quantity(4.0, low=4.0, high=4.0), 0)


@pytest.mark.parametrize("singular", [None, float("inf")])
def test_singular_matrices_are_counted_apart_and_leave_the_median_alone(write_run, singular):
    def one_singular(table, row):
        hit = table == "spectra" and (row["tensor"], row["object"]) == ("2.weight", "weight")
        return {**row, "condition": singular} if hit else row

    rows = {
        row[0]: row[2:] for row in table_of(spectral_entropy([write_run("a", rows=one_singular)]), "condition").rows
    }
    assert rows["weight"][:2] == (Quantity(4.0, low=4.0, high=4.0), 1)
    assert rows["update"][:2] == (Quantity(4.0, low=4.0, high=4.0), 0)


def test_updates_of_two_kinds_side_by_side_are_said_not_to_compare(write_run):
    def foreign(table, row):
        return None if table == "spectra" and row["object"] in ("whitened", "orthogonal", "momentum") else row

    own, other = write_run("own"), write_run("other", "adamw", rows=foreign)

    def noted(*runs):
        return [note for note in spectral_entropy(runs).notes if "excludes weight decay" in note]

    assert len(noted(own, other)) == 1
    assert noted(own) == noted(other) == noted(own, own) == []


def test_vectors_stand_in_the_table_of_tensors_as_a_gap(demo_runs):
    rows = {row[0]: row for row in table_of(spectral_entropy(demo_runs), "tensors").rows}
    assert rows["0.bias"] == ("0.bias", "8", "vector", None)
    assert rows["2.weight"][1] == "3 × 8"
    assert rows["2.weight"][3].startswith("gradient, momentum, whitened, orthogonal")


def test_the_figure_has_a_before_and_dashed_after_for_each_arm(demo_runs):
    figure = spectral_entropy(demo_runs).figures[0]
    assert [(curve.name, curve.dashed, curve.median[-1]) for curve in figure.curves] == [
        ("ars2-base", False, 0.8),
        ("ars2-base", True, 0.99),
        ("ars2-sync", False, 0.8),
        ("ars2-sync", True, 0.99),
    ]
    assert figure.styles == ("before (A)", "after (O)")


def test_the_report_says_that_flattening_is_no_evidence(demo_runs):
    assert any("is not evidence of anything" in note for note in spectral_entropy(demo_runs).notes)


def test_a_run_without_spectra_says_so(write_run):
    report = spectral_entropy([write_run("a", rows=lambda table, row: None if table == "spectra" else row)])
    assert "Singular spectra of a" in report.missing[0].what
    assert table_of(report, "entropy").rows == ()


def test_an_arm_without_newton_schulz_has_neither_a_line_nor_a_finding_of_it(write_run):
    def without(table, row):
        return None if table == "spectra" and row["object"] == "orthogonal" else row

    report = spectral_entropy([write_run("a", "adamw@rms", rows=without)])
    (figure,) = report.figures
    assert [curve.dashed for curve in figure.curves] == [False]
    assert figure.absent == ()
    assert not any("Newton-Schulz" in one.claim for one in report.findings)
    assert not any("Newton-Schulz" in note for note in report.notes)
