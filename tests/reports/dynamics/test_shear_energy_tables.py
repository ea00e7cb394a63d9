"""The shear-force angle and the Fisher energy by arm, track and layer, on runs with known rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median

import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import dynamics, render
from lossscope.reports.content import Quantity
from lossscope.reports.dynamics.shear_energy_tables import ascent_table, energy_table, shear_table
from lossscope.reports.render.drawing import draw_figure

TENSORS = {"a": "matrix", "b": "vector", "c": "matrix"}
OF_STEPS = ("adversarial_angle", "shear_norm", "freshness", "phi", "surrogate_gap")
TABLES = {"surrogate_gap": ("ascent", ascent_table)}  # the other columns of steps are in the table of the shear
OF_TENSORS = ("adversarial_angle", "shear_norm", "shear_ratio", "freshness", "phi")
ENERGIES = ("energy", "energy_rms", "natural_energy", "gradient_energy", "update_energy", "second_moment_sum")
STEPS = (1, 2, 3)
Rows = Callable[[str, dict[str, object]], dict[str, object] | None]


def value(column: str, seed: int, step: int, place: int) -> float:
    """Return a number below 1, unique to its column, seed, step and tensor."""
    number = (OF_STEPS + OF_TENSORS + ENERGIES).index(column) + 1
    return (7 * number + 200 * seed + 31 * step * step + 3 * place) / 2000


def made(seed: int) -> Iterator[tuple[str, dict[str, object]]]:
    for step in STEPS:
        whole = {column: value(column, seed, step, 0) for column in OF_STEPS}
        yield "steps", {"step": step, "loss": 1.0, "synced": True, "weight_norm": 1.0, "gradient_norm": 0.5, **whole}
        for place, (name, track) in enumerate(TENSORS.items(), start=1):
            numbers = {column: value(column, seed, step, place) for column in (*OF_TENSORS, *ENERGIES)}
            yield "tensors", {"step": step, "tensor": name, "track": track, **numbers}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Run]:
    """Return a function that writes a run of the rows above, changed by `rows`, and opens it."""

    def run(name: str, arm: str = "aga", seed: int = 0, rows: Rows = lambda table, row: row) -> Run:
        store = RunStore.create(tmp_path / name, {"arm": arm, "seeds": {"init": seed}})
        for table, row in made(seed):
            changed = rows(table, row)
            if changed is not None:
                store.append(table, changed)
        store.close("finished", "done")
        return Run.open(tmp_path / name)

    return run


def without(*columns: str, where: Callable[[dict[str, object]], bool] = lambda row: True) -> Rows:
    """Return a row transform that drops the columns where `where` holds."""
    return lambda table, row: {k: v for k, v in row.items() if k not in columns} if where(row) else row


def cells(tables) -> dict[tuple[str, str], dict[str, object]]:
    """Return the rows of the table by arm and tensor."""
    (table,) = tables
    keys = [column.key for column in table.columns]
    return {row[:2]: dict(zip(keys, row, strict=True)) for row in table.rows}


def expected(column: str, seeds: tuple[int, ...], places: tuple[int, ...], factor: float = 1.0) -> Quantity:
    """Return the median with its range, computed from the formula of the rows."""
    found = [factor * value(column, seed, step, place) for seed in seeds for step in STEPS for place in places]
    return Quantity(pytest.approx(median(found)), low=pytest.approx(min(found)), high=pytest.approx(max(found)))


@pytest.mark.parametrize("column", [*OF_TENSORS, *ENERGIES])
@pytest.mark.parametrize(
    ("part", "places"), [("matrix track", (1, 3)), ("vector track", (2,)), ("a", (1,)), ("b", (2,)), ("c", (3,))]
)
def test_a_track_and_a_layer_have_the_median_and_range_over_steps_seeds_and_their_tensors(
    written, column, part, places
):
    runs = [written("one"), written("two", seed=1)]
    row = cells(energy_table(runs) if column in ENERGIES else shear_table(runs))["aga", part]
    factor = math.degrees(1) if column == "adversarial_angle" else 1.0
    assert row[column] == expected(column, (0, 1), places, factor)
    assert row["samples"] == 2 * len(STEPS) * len(places)


@pytest.mark.parametrize("column", OF_STEPS)
def test_the_whole_model_is_read_from_the_steps(written, column):
    table = TABLES.get(column, ("shear", shear_table))[1]
    row = cells(table([written("one"), written("two", seed=1)]))["aga", "all"]
    factor = math.degrees(1) if column == "adversarial_angle" else 1.0
    assert row[column] == expected(column, (0, 1), (0,), factor)
    assert row["samples"] == 2 * len(STEPS)


def test_the_ratio_of_the_whole_model_is_of_two_norms_and_missing_for_a_gradient_of_zero(written):
    assert cells(shear_table([written("one")]))["aga", "all"]["shear_ratio"] == expected("shear_norm", (0,), (0,), 2.0)
    zero = written("zero", rows=lambda table, row: {**row, "gradient_norm": 0.0} if table == "steps" else row)
    assert cells(shear_table([zero]))["aga", "all"]["shear_ratio"] == Quantity(None)


def test_the_rows_of_an_arm_are_the_whole_model_then_tracks_then_layers(written):
    runs = [written("one"), written("other", "sync")]
    parts = ["matrix track", "vector track", "a", "b", "c"]
    assert list(cells(shear_table(runs))) == [(arm, part) for arm in ("aga", "sync") for part in ("all", *parts)]
    assert list(cells(energy_table(runs))) == [(arm, part) for arm in ("aga", "sync") for part in parts]


def test_angles_are_in_degrees_and_every_column_says_its_meaning(written):
    tables = [*shear_table([written("one")]), *energy_table([written("two")])]
    assert all(column.meaning and column.unit for table in tables for column in table.columns[3:])
    assert {column.key: column.unit for column in tables[0].columns}["adversarial_angle"] == "°"


def test_an_arm_without_ascent_has_no_shear_row_and_no_curve_and_is_not_told_to_be_missing_one(written):
    def flat(table, row):
        return {**without(*OF_STEPS, "shear_ratio")(table, row), **({"synced": False} if table == "steps" else {})}

    runs = [written("one"), written("plain", "base", rows=flat)]
    assert {arm for arm, _ in cells(shear_table(runs))} == {"aga"}
    assert {arm for arm, _ in cells(energy_table(runs))} == {"aga", "base"}
    assert shear_table(runs[1:]) == ()
    report = dynamics(runs)
    figures = {figure.key: figure for figure in report.figures}
    assert figures["shear_angle"].absent == figures["shear_angle_by_track"].absent == ("base",)
    assert not [one for one in report.missing if "hear" in one.what]
    assert not [figure for figure in dynamics(runs[1:]).figures if figure.key.startswith("shear")]


def test_second_passes_without_an_angle_and_shears_that_nobody_stored_are_missing_with_how_to_get_them(written):
    blind = written("blind", "sam", rows=without(*OF_STEPS, "shear_ratio"))
    sync = written("sync", "sync", rows=without("shear_norm", "shear_ratio", "freshness", "phi"))
    how = {one.what: one.how for one in dynamics([written("one"), blind, sync]).missing}
    assert "lossscope's own optimizers" in how["Shear-force angle of blind"]
    assert "ars2-aga" in how["Norm, freshness and phi of the shear of sync"]
    row = cells(shear_table([sync]))["sync", "all"]
    assert row["adversarial_angle"].value is not None
    assert not {"shear_norm", "phi"} & {*row}


def test_energies_that_are_missing_are_told_for_the_run_or_for_its_track(written):
    none = written("none", "sgd", rows=without(*ENERGIES))
    half = written("half", "muon", rows=without(*ENERGIES, where=lambda row: row.get("track") == "matrix"))
    report = dynamics([written("one"), none, half])
    how = {one.what: one.how for one in report.missing if one.what.startswith("Fisher")}
    assert list(how) == ["Fisher energy of none", "Fisher energy of the matrix track of half"]
    assert "second moments" in how["Fisher energy of none"]
    assert {part for arm, part in cells(energy_table([half]))} == {"vector track", "b"}
    assert energy_table([none]) == ()


def test_steps_without_a_second_pass_are_no_samples_of_the_angle_and_keep_their_phi(written):
    lazy = without("adversarial_angle", "shear_norm", "shear_ratio", "freshness", where=lambda row: row["step"] == 2)
    found = cells(shear_table([written("lazy", rows=lazy)]))
    assert (found["aga", "all"]["samples"], found["aga", "matrix track"]["samples"]) == (2, 4)
    assert found["aga", "b"]["phi"] == expected("phi", (0,), (2,))
    angles = [math.degrees(value("adversarial_angle", 0, step, 2)) for step in (1, 3)]
    assert found["aga", "b"]["adversarial_angle"].value == pytest.approx(sum(angles) / 2)


@pytest.mark.parametrize("kept", ENERGIES)
def test_a_sample_with_a_single_energy_counts_and_is_not_missing(written, kept):
    run = written("one", rows=without(*(column for column in ENERGIES if column != kept)))
    assert cells(energy_table([run]))["aga", "b"]["samples"] == len(STEPS)
    assert not [one for one in dynamics([run]).missing if one.what.startswith("Fisher")]


def test_a_missing_number_is_left_out_and_a_seed_without_any_is_counted(written):
    some = written("some", rows=without("energy", where=lambda row: row["step"] == 2))
    gone = written("gone", seed=1, rows=without("energy"))
    cell = cells(energy_table([some, gone]))["aga", "b"]["energy"]
    kept = [value("energy", 0, step, 2) for step in (1, 3)]
    assert cell == Quantity(pytest.approx(sum(kept) / 2), low=kept[0], high=kept[1], missing=1)


def test_layers_beyond_the_most_are_counted_and_the_summaries_stay(written):
    def many(table, row):
        return {**row, "tensor": f"{row['tensor']}{row['step']}"} if table == "tensors" else row

    numbers = count()

    def more(table, row):
        return {**row, "tensor": f"t{next(numbers)}"} if table == "tensors" else row

    few = written("few", "few", rows=many)
    for make in (shear_table, energy_table):
        assert "not listed" not in make([few])[0].note
    runs = [written(f"m{seed}", "many", seed, rows=more) for seed in range(3)]  # 27 tensors, one row each
    for make, summaries in ((shear_table, 3), (energy_table, 2)):
        (table,) = make([*runs, few])
        rows = [row for row in table.rows if row[0] == "many"]
        assert len(rows) == summaries + 20
        assert {"matrix track", "vector track"} <= {row[1] for row in rows}
        assert ". 7 more tensors of many are not listed." in table.note
        assert "of few are not listed" not in table.note


def report_of(run: Run) -> dict[str, dict[str, dict[str, object]]]:
    """Return the dynamics report of a run as JSON."""
    return json.loads(render(dynamics([run]), "json"))


@pytest.mark.parametrize("column", ["adversarial_angle", "surrogate_gap", *OF_TENSORS[1:], *ENERGIES])
def test_a_change_of_a_recorded_column_changes_the_report(written, column):
    def moved(table, row):
        return {**row, column: row[column] + 0.25} if column in row else row

    plain, changed = report_of(written("plain")), report_of(written("changed", rows=moved))
    key = "energy" if column in ENERGIES else TABLES.get(column, ("shear",))[0]
    parts = ["all"] if column == "surrogate_gap" else ["a", "b", "c", "matrix track", "vector track"]
    before, after = (
        {row["tensor"]: row[column]["value"] for row in content["tables"][key]["rows"]} for content in (plain, changed)
    )
    step = math.degrees(0.25) if column == "adversarial_angle" else 0.25
    assert [after[part] - before[part] for part in parts] == pytest.approx([step] * len(parts))


def test_the_figures_have_the_mean_of_each_track_matrices_solid_and_vectors_dashed(written):
    figures = {figure.key: figure for figure in dynamics([written("one")]).figures}
    assert list(figures) == ["loss", "phi", "shear_angle", "shear_angle_by_track", "energy_rms"]
    for key, column, factor in (
        ("shear_angle_by_track", "adversarial_angle", math.degrees(1)),
        ("energy_rms", "energy_rms", 1.0),
    ):
        solid, dashed = figures[key].curves
        assert figures[key].styles == ("matrices", "vectors")
        assert (solid.dashed, dashed.dashed) == (False, True)
        matrices = [factor * (value(column, 0, s, 1) + value(column, 0, s, 3)) / 2 for s in STEPS]
        assert solid.median == pytest.approx(matrices)
        assert dashed.median == pytest.approx([factor * value(column, 0, s, 2) for s in STEPS])


def test_an_arm_with_numbers_of_its_vectors_only_has_its_name_in_the_legend_and_its_matrices_are_missing(written):
    half = written("half", "muon", rows=without(*ENERGIES, where=lambda row: row.get("track") == "matrix"))
    figure = next(one for one in dynamics([written("one"), half]).figures if one.key == "energy_rms")
    assert figure.absent == ("muon, matrices",)
    texts = [text.get_text() for text in draw_figure(figure).legends[0].get_texts()]
    assert texts.count("aga") == texts.count("muon") == 1
    assert any(text.startswith("muon, matrices") for text in texts)


def test_the_ascent_of_the_whole_model_is_relative_to_its_weights_and_of_a_layer_as_recorded(written):
    def ascended(table, row):
        numbers = {"perturbation_norm": 0.25, "relative_radius": 0.5} if table == "tensors" else {}
        whole = {"perturbation_norm": 0.75, "weight_norm": 3.0, "secant_gradient": 4.0, "secant_loss": 5.0}
        return {**row, **numbers, **(whole if table == "steps" else {})}

    rows = cells(ascent_table([written("one", rows=ascended)]))
    assert rows["aga", "all"]["relative_radius"].value == 0.25
    assert (rows["aga", "all"]["secant_gradient"].value, rows["aga", "all"]["secant_loss"].value) == (4.0, 5.0)
    assert rows["aga", "a"]["relative_radius"].value == 0.5
    assert rows["aga", "a"]["samples"] == len(STEPS)
    assert rows["aga", "a"]["secant_loss"] == Quantity(None)


def test_a_run_without_an_ascent_has_no_table_of_it(written):
    assert ascent_table([written("one", rows=without("surrogate_gap"))]) == ()


def test_a_column_that_no_row_has_is_left_out(written):
    (table,) = shear_table([written("one", rows=without("phi", "freshness"))])
    keys = [column.key for column in table.columns]
    assert "adversarial_angle" in keys
    assert not {"phi", "freshness"} & {*keys}
    assert {len(row) for row in table.rows} == {len(keys)}


def test_a_norm_that_is_the_same_but_for_rounding_has_no_range(written):
    def constant(table, row):
        return {**row, "perturbation_norm": 0.25 + 1e-8 * row["step"]} if table == "steps" else row

    row = cells(ascent_table([written("one", rows=constant)]))["aga", "all"]
    assert row["perturbation_norm"] == Quantity(pytest.approx(0.25))
