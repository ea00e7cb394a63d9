"""Every column of every table and every measure is shown: other values give another section, in text too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from whole_run import whole_run

from lossscope.landscape.measures.catalogue import GROUPS, known_measures
from lossscope.landscape.run import Run
from lossscope.landscape.storage.schema import TABLES, Column
from lossscope.reports import dynamics, flatness, overview, render, sharpness, spectral_entropy
from lossscope.reports.content import Report

PAGES: dict[str, Callable[[Sequence[Run]], Report]] = {
    "overview": overview,
    "sharpness": sharpness,
    "entropy": spectral_entropy,
    "flatness": flatness,
    "dynamics": dynamics,
}
# Page and section (a table, a figure, or findings, notes, provenance) -> table -> columns that it answers with.
COLUMNS: dict[str, dict[str, str]] = {
    "overview/figure loss": {"steps": "step loss"},
    "overview/summary": {"steps": "train_accuracy test_loss test_accuracy"},
    "overview/norms": {"steps": "lr weight_decay weight_norm update_norm"},
    "sharpness/trajectory": {"probes": "step measure"},
    "sharpness/modules": {"probes": "tensor"},
    "sharpness/opinions": {"probes": "residual engine"},
    "sharpness/cost": {
        "probes": "products seconds gradients",
        "densities": "products seconds gradients",
        "curves": "measure products seconds gradients",
    },
    "sharpness/other_data": {"probes": "data_hash"},
    "sharpness/provenance": {
        "probes": "mode loss_kind gauge dtype seed method additivity parameters samples",
        "densities": "mode loss_kind seed method engine data_hash additivity",
    },
    "sharpness/notes": {
        "probes": "product_error basis memory proof cause",
        "densities": "product_error basis memory",
    },
    "sharpness/findings": {"probes": "converged"},
    "sharpness/figure density": {"densities": "step nodes weights settled size"},
    "entropy/figure entropy": {"spectra": "step"},
    "entropy/entropy": {"spectra": "object norm entropy_energy entropy_nuclear stable_rank effective_rank"},
    "entropy/condition": {"spectra": "condition orthogonality_defect"},
    "entropy/order": {"spectra": "slice excess_order"},
    "entropy/newton_schulz": {"spectra": "outside_band polar_norm polar_cosine"},
    "entropy/tensors": {"spectra": "tensor"},
    "entropy/provenance": {"spectra": "method"},
    "entropy/findings": {"spectra": "error"},
    "flatness/runs": {"probes": "value stderr low high"},
    "flatness/tensor_norms": {
        "tensors": "lr weight_decay gradient_norm weight_norm update_norm update_ratio",
        "spectra": "values",
    },
    "flatness/figure noise_curve": {"curves": "x y low high"},
    "flatness/provenance": {
        "curves": "step mode loss_kind gauge dtype seed data_hash additivity parameters samples",
    },
    "dynamics/pace": {"steps": "seconds passes"},
    "dynamics/trigger": {"steps": "synced phi threshold"},
    "dynamics/shear": {
        "steps": "gradient_norm adversarial_angle shear_norm freshness",
        "tensors": "track adversarial_angle shear_norm shear_ratio freshness phi",
    },
    "dynamics/ascent": {
        "steps": "adversarial_loss adversarial_norm perturbation_norm surrogate_gap secant_gradient secant_loss",
        "tensors": "perturbation_norm relative_radius",
    },
    "dynamics/injection": {"steps": "alpha injection_angle", "tensors": "injected_norm injection_angle"},
    "dynamics/energy": {
        "tensors": "tensor energy energy_rms natural_energy alignment gradient_energy update_energy second_moment_sum"
    },
    "dynamics/figure energy_rms": {"tensors": "step"},
    "dynamics/layers": {"steps": "remainder_rounding", "tensors": "remainder"},
    "dynamics/memory": {"pairs": "object lag cosine"},
    "dynamics/directions": {"pairs": "size"},
    "dynamics/spikes": {"spikes": "step cause loss level"},
    "dynamics/spike_modules": {"spikes": "tensor at gradient_norm update_norm weight_norm largest_update"},
    "dynamics/noise_scale": {"pairs": "step square pair_square samples"},
    "dynamics/provenance": {"pairs": "mode loss_kind dtype data_hash additivity"},
}
# Columns that no section needs, with the reason; at most ten.
KEYS: dict[str, str] = {
    "densities.probe": "key: tells the random probes of one density apart; 0 starts a new density",
}
MEASURES: dict[str, str] = {
    "overview/summary": "train_loss test_loss",
    "sharpness/runs": "loss lambda_max lambda_min trace directional_edge_ratio",
    "sharpness/eigenvalues": "lambda_2 lambda_3 lambda_4 lambda_5",
    "sharpness/spectrum": "frobenius negative_mass effective_rank participation_ratio",
    "sharpness/edges": "sharpness_edge_ratio preconditioned_sharpness preconditioned_edge_ratio batch_sharpness "
    "batch_sharpness_ratio_of_means",
    "sharpness/critical": "critical_step critical_learning_rate critical_sharpness critical_ratio lambda_dir",
    "sharpness/modules": "trace_share frobenius_share cross_block_share",
    "sharpness/sampling_error": "lambda_max_in_sample lambda_max_cross_fitted lambda_max_population",
    "flatness/runs": "adaptive_lambda_max adaptive_trace balanced_lambda_max balanced_trace sigma_star",
    "flatness/guard": "guard_adaptive_lambda_max guard_adaptive_trace guard_balanced_lambda_max guard_balanced_trace "
    "guard_lambda_max",
    "flatness/norms": "logit_norm mean_margin",
    "dynamics/step_quality": "trust_ratio relative_first relative_second secant_curvature directional_sharpness",
    "dynamics/step_terms": "loss_change first_remainder second_remainder secant_norm secant_alignment",
    "dynamics/alignment": "top_share top5_share gradient_cosine gradient_rayleigh",
}
IN_OTHER_TABLES = {"density": "densities.nodes", "noise_rise": "curves.y"}  # measures without rows in probes

SHOWN = {
    f"{table}.{column}": section
    for section, tables in COLUMNS.items()
    for table, columns in tables.items()
    for column in columns.split()
}
GENERIC = {
    name: f"{group.reports[0]}/other_measures"
    for group in GROUPS.values()
    if not group.own_table
    for name in group.names
}  # shown by a table that asks the catalogue
MEASURED = GENERIC | {measure: section for section, measures in MEASURES.items() for measure in measures.split()}
EVERY = 20  # of this many columns one is tried in the fast suite


def some(names: Sequence[str]) -> list[Any]:
    """Return names as parameters, all but every twentieth marked slow."""
    return [
        name if place % EVERY == 0 else pytest.param(name, marks=pytest.mark.slow) for place, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pd.DataFrame]]:
    """Return the folder of the run, and its tables."""
    folder = tmp_path_factory.mktemp("everything") / "whole"
    run = whole_run(folder)
    return folder, {table: getattr(run, table) for table in TABLES}


def opened(written: tuple[Path, dict[str, pd.DataFrame]], **changed: pd.DataFrame) -> Run:
    """Return the run with other tables."""
    folder, tables = written
    run = Run.open(folder)
    vars(run).update({**tables, **changed})
    return run


def changed(column: Column, values: pd.Series[Any]) -> pd.Series[Any]:
    """Return other values of a column: numbers by no common factor, texts by a letter."""
    match column.type:
        case "float":
            return values * np.linspace(1.3, 1.9, len(values))
        case "int":
            return values * 3 if column.unit == "bytes" else values + 3
        case "bool":
            return ~values
        case "text":
            return values.map(lambda one: f"{one}x" if isinstance(one, str) else one)
        case _:
            factor = -1 if column.name == "settled" else 1
            return values.map(lambda one: np.sort(np.asarray(one)[::factor] * np.linspace(1.3, 1.9, len(one)))[::-1])


def section(report: Report, name: str) -> object:
    """Return a section of a report: a table, a figure in numbers, or a part of the report."""
    if name in ("findings", "notes", "provenance"):
        return getattr(report, name)
    if name.startswith("figure "):
        return next(one.summary for one in report.figures if one.key == name.removeprefix("figure "))
    return next((one.rows for one in report.tables if one.key == name), None)


@pytest.fixture(scope="module")
def pages(written: tuple[Path, dict[str, pd.DataFrame]]) -> Callable[[str], tuple[Report, str]]:
    """Return a function from the name of a page to the page of the run as written, and its text."""
    made: dict[str, tuple[Report, str]] = {}

    def page(name: str) -> tuple[Report, str]:
        if name not in made:
            report = PAGES[name]([opened(written)])
            made[name] = report, render(report, "text")
        return made[name]

    return page


def assert_shown(pages: Callable[[str], tuple[Report, str]], after: Run, where: str) -> None:
    """Assert that a section is there in the run as written, and that it and its page in text differ in another run."""
    page, _, name = where.partition("/")
    first, text = pages(page)
    second = PAGES[page]([after])
    assert section(first, name), f"{where} is not there"
    assert section(first, name) != section(second, name)
    assert text != render(second, "text")


def test_every_column_and_measure_has_a_section() -> None:
    columns = {f"{table}.{column.name}" for table, found in TABLES.items() for column in found}
    assert columns == {*SHOWN, *KEYS}
    assert not {*SHOWN} & {*KEYS}
    assert len(KEYS) <= 10
    assert set(known_measures()) == {*MEASURED, *IN_OTHER_TABLES}
    assert {*IN_OTHER_TABLES.values()} <= columns


@pytest.mark.parametrize("name", some(list(SHOWN)))
def test_other_values_of_a_column_change_its_section(
    written: tuple[Path, dict[str, pd.DataFrame]], pages: Callable[[str], tuple[Report, str]], name: str
) -> None:
    table, _, key = name.partition(".")
    column = next(one for one in TABLES[table] if one.name == key)
    rows = written[1][table]
    after = opened(written, **{table: rows.assign(**{key: changed(column, rows[key])})})
    assert_shown(pages, after, SHOWN[name])


@pytest.mark.parametrize("measure", some(list(MEASURED)))
def test_other_values_of_a_measure_change_its_section(
    written: tuple[Path, dict[str, pd.DataFrame]], pages: Callable[[str], tuple[Report, str]], measure: str
) -> None:
    rows = written[1]["probes"].copy()
    there = rows["measure"] == measure
    assert there.any()
    rows.loc[there, ["value", "low", "high"]] *= 1.4
    assert_shown(pages, opened(written, probes=rows), MEASURED[measure])
