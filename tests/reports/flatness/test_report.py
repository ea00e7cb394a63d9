"""The flatness report: the four numbers, what is said of each, rest, the guard, and the other measures."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lossscope.landscape.measures import catalogue
from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.measures.measure import Bound, Measure
from lossscope.landscape.measures.measure_group import MeasureGroup
from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import flatness, render
from lossscope.reports.content import Column, Quantity, Report, Table
from lossscope.reports.figure_content import Cloud
from lossscope.reports.flatness.four_numbers import FOUR, number_at_end, step_of
from lossscope.reports.flatness.rest import Rest, rest_of, rest_table
from lossscope.reports.flatness.secondary import secondary_tables
from lossscope.reports.flatness.statements import statements
from lossscope.reports.shared.condensed import condensed
from lossscope.reports.shared.cost_tables import cost_table
from lossscope.reports.shared.measure_tables import measure_table

# the function `flatness` of the package hides the room of this name
REPORT = importlib.import_module("lossscope.reports.flatness.report")
SECONDARY = importlib.import_module("lossscope.reports.flatness.secondary")
SHARED = {"mode": "eval", "loss_kind": "mean", "engine": "lossscope", "converged": True}


def extended(run: Run, *rows: dict[str, object], table: str = "probes") -> Run:
    """Append rows to a table of a run."""
    store = RunStore.extend(run.path, {})
    for row in rows:
        store.append(table, row)
    store.leave()
    return Run.open(run.path)


def measured(step: int, half: float = 0.5, **numbers: float) -> list[dict[str, object]]:
    """Return rows of measures at a step with an interval of a half-width."""
    return [
        {**SHARED, "step": step, "measure": name, "value": one, "low": one - half, "high": one + half}
        for name, one in numbers.items()
    ]


def table_of(report: Report, key: str) -> Table:
    return next(one for one in report.tables if one.key == key)


def row_of(table: Table, place: int = 0) -> dict[str, object]:
    return dict(zip((column.key for column in table.columns), table.rows[place], strict=True))


def words_of(report: Report) -> str:
    return "\n".join(one.words for one in report.summary)


def test_each_run_has_its_numbers_and_the_loss_they_were_taken_at(demo_runs: list[Run]) -> None:
    row = row_of(table_of(flatness(demo_runs), "runs"), 1)
    assert row["adaptive_trace"] == Quantity(4.0, error=0.125, low=3.75, high=4.25)
    assert isinstance(row["loss"], Quantity)
    assert row["loss"].value == pytest.approx(0.06)
    assert row["step"] == step_of(demo_runs[1])


def test_the_numbers_of_a_row_are_of_one_step_and_as_many_as_there_are(write_run: Callable[..., Run]) -> None:
    run = extended(write_run("a"), *measured(10, **dict.fromkeys(FOUR, 1.0)))
    assert step_of(run) == 10
    assert number_at_end(run, "balanced_trace").value == 1.0
    later = extended(run, *measured(12, **dict.fromkeys(FOUR, 2.0)), *measured(14, balanced_trace=3.0))
    assert step_of(later) == 12
    assert number_at_end(later, "balanced_trace").value == 2.0


def test_what_leaves_a_number_as_it_is_stands_beside_it_in_the_words_of_the_catalogue(
    write_run: Callable[..., Run],
) -> None:
    report = flatness([extended(write_run("a"), *measured(40, **dict.fromkeys(FOUR, 1.0)))])
    table = table_of(report, "numbers")
    rows = [row_of(table, place) for place in range(len(table.rows))]
    assert [row["number"] for row in rows[:4]] == [
        "worst, relative",
        "average, relative",
        "worst, balanced",
        "average, balanced",
    ]
    for name, row in zip((*FOUR, "lambda_max"), rows, strict=True):
        assert (row["unchanged"], row["meaning"]) == (known_measures()[name].invariance, known_measures()[name].meaning)
    page = render(report, "markdown")
    assert all(known_measures()[name].invariance in page for name in FOUR)
    assert "Unchanged by every diagonal rescaling" in next(one.caption for one in report.figures if one.key in FOUR)


def test_no_invariance_is_written_down_in_the_report() -> None:
    folder = Path(flatness.__code__.co_filename).parent
    sources = "\n".join(path.read_text() for path in folder.glob("*.py"))
    for invariance in {one.invariance for one in known_measures().values()}:
        assert invariance not in sources


def test_what_no_run_has_of_the_panel_is_named_with_the_command_that_measures_it(demo_runs: list[Run]) -> None:
    report = flatness(demo_runs)
    assert [one.what.split()[0] for one in report.missing] == ["Adaptive", "λ_max", "Basin", "Guard:"]
    assert [one.how.rsplit(" ", 1)[1] for one in report.missing] == ["adaptive", "balanced", "basin", "guard"]
    assert "guard" not in {table.key for table in report.tables}


def test_the_numbers_and_the_guard_are_shown_where_they_were_measured(write_run: Callable[..., Run]) -> None:
    numbers = {"adaptive_lambda_max": 2.0, "balanced_trace": 3.0, "sigma_star": 0.125, "guard_adaptive_trace": 1.0}
    report = flatness([extended(write_run("a"), *measured(40, **numbers))])
    row = row_of(table_of(report, "runs"))
    assert [row[name].value for name in ("adaptive_lambda_max", "balanced_trace", "sigma_star")] == [2, 3, 0.125]
    assert table_of(report, "guard").rows[0][-1].value == 1.0
    assert not report.missing
    words = words_of(report)
    assert "With each weight in units of itself, curvature at step 40 is 2.00 ± 0.50 nats in the worst" in words
    assert "Each weight may be off by 12 ± 50 % of itself before the mean loss rises by 0.1 (σ*)." in words
    assert "leaves these numbers as they are" in words


def test_a_number_that_a_rescaling_changes_asks_for_action(write_run: Callable[..., Run]) -> None:
    rows = measured(40, 0.1, guard_adaptive_trace=3.0, guard_lambda_max=40.0)
    report = flatness([extended(write_run("a"), *rows)])
    found = [one for one in report.summary if "not to be trusted" in one.words]
    assert [one.severity for one in found] == ["act"]
    assert "changed the adaptive trace of a by a factor of 3.00 ± 0.10" in found[0].words


def test_raw_curvature_that_says_the_opposite_is_told_and_does_not_count(write_run: Callable[..., Run]) -> None:
    folder = write_run("other").path.parent

    def run(name: str, raw: float) -> Run:
        first = measured(1, 0.01, adaptive_lambda_max=1.0, lambda_max=1.0, loss=2.0)
        last = measured(60, 0.01, adaptive_lambda_max=0.2, lambda_max=raw, loss=0.1)
        store = RunStore.create(folder / name, {"arm": name, "loss_unit": "nats"})
        for row in (*first, *last):
            store.append("probes", row)
        store.close("finished", "done")
        return Run.open(store.path)

    assert "changed the other way" in words_of(flatness([run("sharper", 5.0)]))
    assert "changed the other way" not in words_of(flatness([run("flatter", 0.5)]))


def test_numbers_that_missed_their_accuracy_are_one_statement(write_run: Callable[..., Run]) -> None:
    rows = [{**row, "converged": False} for row in measured(40, adaptive_trace=1.0, balanced_trace=1.0)]
    found = [one for one in flatness([extended(write_run("a"), *rows)]).summary if "accuracy" in one.words]
    assert [one.severity for one in found] == ["look"]
    assert "of a the accuracy that was asked was not reached (adaptive trace, balanced trace)" in found[0].words


def test_no_comparison_is_made_and_the_reason_is_given(demo_runs: list[Run]) -> None:
    assert any("not at matched train loss" in note for note in flatness(demo_runs).notes)


def test_each_number_and_raw_curvature_are_drawn_over_the_loss_and_not_over_steps(demo_runs: list[Run]) -> None:
    figures = {one.key: one for one in flatness(demo_runs).figures}
    assert {"adaptive_trace", "lambda_max_over_loss"} <= set(figures)
    figure = figures["adaptive_trace"]
    assert isinstance(figure, Cloud)
    assert figure.x.label == "train loss"
    assert len(figure.points[0].x) == 16  # eight evaluations of two seeds
    assert figure.points[0].y[-1] == 4.0
    assert figure.points[0].error[-1] == 0.25
    assert "balanced_trace" not in figures  # no run has it


def test_many_runs_are_told_by_arm_and_each_has_a_row_to_sort(write_run: Callable[..., Run]) -> None:
    runs = [write_run(f"r{seed}", seed=seed) for seed in range(13)]
    report = flatness(runs)
    assert [row[:2] for row in table_of(report, "arms").rows] == [("ars2-base", 13)]
    assert [row[0] for row in table_of(report, "runs").rows] == [run.name for run in runs]
    per_run = [one.key for one in report.tables if one.columns[0].key == "run"]
    assert per_run == ["runs"]
    assert [row[:2] for row in measure_table(runs, "some", "Some", [Column("trace", "trace")], "")[0].rows] == [
        ("ars2-base", 13)
    ]
    assert cost_table(runs).rows[0][:2] == ("ars2-base", 13)
    assert len(cost_table(runs[:12]).rows) == 12


def test_the_text_of_many_runs_is_one_line_for_each_arm(demo_runs: list[Run]) -> None:
    report = flatness(demo_runs)
    arms = table_of(report, "arms")
    rows = tuple((f"arm-{place}", *arms.rows[0][1:]) for place in range(14))
    found = condensed(replace(report, tables=(replace(arms, rows=rows), *report.tables)), 140)
    (table,) = found.tables
    assert [row[0] for row in table.rows] == [f"arm-{place}" for place in range(14)]
    assert not any(isinstance(cell, Quantity) and cell.low is not None for row in table.rows for cell in row)
    assert len(render(found, "text", width=120).splitlines()) <= 60


@pytest.mark.slow
def test_the_text_of_fourteen_arms_is_at_most_sixty_lines(demo_runs: list[Run], tmp_path: Path) -> None:
    runs = []
    for arm in range(14):
        for seed in range(2):
            path = Path(shutil.copytree(demo_runs[2].path, tmp_path / f"arm-{arm}-{seed}"))
            facts = json.loads((path / "run.json").read_text())
            (path / "run.json").write_text(json.dumps({**facts, "arm": f"arm-{arm}", "seeds": {"init": seed}}))
            runs.append(Run.open(path))
    found = condensed(flatness(runs), len(runs))
    assert len(found.tables[0].rows) == 14
    assert len(render(found, "text", width=120).splitlines()) <= 60


# Rest at the end of training


def still(gradient: float, mass: float, *, half: float = 0.001, diverged: bool = False) -> Rest:
    """Return the rest of a run whose gradient has a sampling noise of 1."""
    norm = Quantity(gradient, low=gradient - half, high=gradient + half)
    return Rest(norm, 1.0, None, Quantity(mass, low=max(mass - half, 0), high=mass + half), diverged)


@pytest.mark.parametrize(
    ("rest", "earned"),
    [
        (still(0.5, 0.0), True),
        (still(1.5, 0.0), False),
        (still(0.5, 0.3), False),
        (still(1.0, 0.0, half=0.2), None),  # the interval holds the noise
        (still(0.5, 0.01), None),  # the interval holds 1 %
        (still(0.5, 0.0, diverged=True), False),
        (replace(still(0.5, 0.0), noise=None), None),
        (replace(still(0.5, 0.0), mass=Quantity(None)), None),
        (replace(still(0.5, 0.5), noise=None), False),  # a direction leads down, whatever the gradient is
    ],
)
def test_rest_needs_a_gradient_below_its_noise_and_no_negative_curvature(rest: Rest, earned: bool | None) -> None:
    assert rest.earned is earned


def test_the_gradient_is_freed_of_the_noise_of_minibatches(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", {"arm": "a", "curvature_samples": 1000, "loss_unit": "nats"})
    for step in range(0, 100, 10):  # |g|² = 4, tr Σ = 1000: of 10 samples 104, of 20 samples 54
        row = {"step": step, "object": "gradient", "lag": 0, "samples": 10, "size": 5, "cosine": 0.5}
        store.append("pairs", {**row, "square": 104.0, "pair_square": 54.0, "mode": "eval", "loss_kind": "mean"})
    store.close("finished", "done")
    rest = rest_of(Run.open(tmp_path / "run"))
    assert rest.gradient.value == pytest.approx(2.0)
    assert rest.noise == pytest.approx(1.0)
    assert rest.steep is True
    assert rest.word == "no"


def test_of_many_runs_rest_is_counted_by_arm(write_run: Callable[..., Run]) -> None:
    runs = [write_run(f"r{seed}", seed=seed) for seed in range(13)]
    rests = {run.name: still(0.5 if place < 5 else 1.5, 0.0) for place, run in enumerate(runs)}
    (table,) = rest_table(runs, rests)
    assert row_of(table)["rest"] == "yes 5, no 8"


MINIMUM = re.compile(r"minim(?:um|a)\b", re.I)


@pytest.mark.parametrize("rest", [still(1.5, 0.0), still(0.5, 0.3), still(1.0, 0.0, half=0.2), still(0.5, 0.0)])
def test_the_word_minimum_stands_where_it_was_earned_only(
    write_run: Callable[..., Run], rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REPORT, "rest_of", lambda run: rest)
    run = extended(write_run("a"), *measured(40, **dict.fromkeys(FOUR, 1.0)), *measured(40, guard_adaptive_trace=1.0))
    report = flatness([run])
    for format in ("text", "markdown", "json", "html"):
        page = re.sub(r"<(script|style)\b.*?</\1>", "", render(report, format), flags=re.S)
        assert bool(MINIMUM.search(page)) is (rest.earned is True), format


def test_the_subject_of_the_word_is_the_runs_that_earned_it(write_run: Callable[..., Run]) -> None:
    runs = [write_run(f"r{seed}", seed=seed) for seed in range(3)]
    kinds = (still(0.5, 0.0), still(1.5, 0.0), still(0.5, 0.0, diverged=True))
    words = [
        one.words
        for one in statements(runs, {run.name: kind for run, kind in zip(runs, kinds, strict=True)})
        if "rest" in one.words or MINIMUM.search(one.words)
    ]
    assert words[0].startswith("1 of 3 runs ended in a minimum as far as was measured: the gradient is 0.50")
    assert words[1].startswith("1 of 3 runs did not end at rest: the gradient over the second half")
    assert len(words) == 2


# Other measures


def declared(name: str, invariance: str, cost: str) -> MeasureGroup:
    measure = Measure(name, "loss", Bound.DRAWS, invariance, f"meaning of {name}")
    return MeasureGroup(name, (measure,), run=lambda panel, names: {}, reports=("flatness",), cost=cost)


@pytest.fixture
def new_measures(monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    """Declare three measures of two invariances for the time of a test."""
    monkeypatch.setattr(catalogue, "GROUPS", dict(catalogue.GROUPS))
    monkeypatch.setattr(SECONDARY, "GROUPS", catalogue.GROUPS)
    for name, invariance in (("first", "ways of a"), ("second", "ways of b"), ("third", "ways of a")):
        catalogue.register(declared(name, invariance, f"cost of {name}"))
    return ("first", "second", "third")


def test_a_measure_that_the_catalogue_declares_appears_by_invariance_with_its_cost(
    new_measures: Sequence[str], write_run: Callable[..., Run]
) -> None:
    run = extended(write_run("a"), *measured(40, **dict.fromkeys(new_measures, 2.0)), *measured(50, first=7.0))
    report = flatness([run])
    values = table_of(report, "other_measures")
    found = [(row[0], row[2], row[3].value, row[-1]) for row in values.rows if row[0] in new_measures]
    assert found == [("first", 50, 7.0, "ways of a"), ("third", 40, 2.0, "ways of a"), ("second", 40, 2.0, "ways of b")]
    meanings = {row[0]: (row[1], row[-1]) for row in table_of(report, "other_measures_declared").rows}
    assert meanings["second"] == ("meaning of second", "cost of second")


def test_other_measures_of_many_runs_are_told_by_arm(
    new_measures: Sequence[str], write_run: Callable[..., Run]
) -> None:
    runs = [extended(write_run(f"r{k}", seed=k), *measured(40, first=1.0 + k)) for k in range(13)]
    rows = [row for row in secondary_tables(runs)[0].rows if row[0] == "first"]
    assert [(row[1], row[2], row[3].value, row[3].low, row[3].high) for row in rows] == [("ars2-base", 40, 7, 1, 13)]
