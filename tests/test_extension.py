"""The two extension points: a measure and an optimizer registered at run time are known everywhere.

No module of the package is edited or patched: `register` is all that either takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lossscope import Run, reports
from lossscope.cli.main import app
from lossscope.landscape.measures.catalogue import GROUPS, register as register_measure
from lossscope.landscape.measures.measure import Bound, Measure
from lossscope.landscape.measures.measure_group import MeasureGroup, Schedule
from lossscope.optimizer import registry
from lossscope.optimizer.update.adam import ParameterStep, Update, decay, move
from lossscope.optimizer.update.rule import Direction, Group, Rule
from lossscope.probes.statistics.estimate import exact_estimate

VALUE = 6570.0  # parameters of digits-mlp
REPORTS = ("overview", "sharpness", "entropy", "flatness", "dynamics")


def lossscope(*words: object) -> str:
    """Run a command in this process and return its stdout."""
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def dummy_measure() -> Iterator[None]:
    """Register a measure that is also recorded at long evaluations."""
    register_measure(
        MeasureGroup(
            "dummy",
            (Measure("dummy", "1", Bound.EXACT, "every map", "number of parameters"),),
            run=lambda panel, names: {"dummy": exact_estimate(float(panel.objective.size))},
            recorded=Schedule(9, lambda evaluation: ("dummy",) if evaluation.long else ()),
            reports=("flatness",),
        )
    )
    yield
    del GROUPS["dummy"]


def halved(group: Group, moments: Sequence[ParameterStep]) -> list[Update]:
    """`W <- (1 - lr wd) W - lr k g / 2`."""
    decay(group, moments)
    for moment in moments:
        moment.state["step"] += 1
    return [move(group, moment, Update(moment.gradient, 0.5 * group["kept"])) for moment in moments]


@pytest.fixture
def dummy_optimizer() -> Iterator[None]:
    """Register an update rule with one required setting."""
    tables = (registry.ENTRIES, registry.RULES, registry._BASES, registry._BASE_SETTINGS)
    before = [dict(table) for table in tables]
    registry.register(
        "dummy",
        Rule(
            step=halved,
            words="half a gradient step",
            source="this test",
            lr=0.1,
            required=("kept",),
            direction=Direction.GRADIENT,
        ),
    )
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


def trained(folder: Path, *words: object) -> Run:
    """Train digits for a few steps from the command line."""
    lossscope("train", "--workload", "digits-mlp", "--preset", "economy", "--out", folder, "--name", "run", *words)
    return Run.open(folder / "run")


@pytest.mark.usefixtures("dummy_measure", "few_products")
def test_a_measure_registered_at_run_time_is_listed_recorded_probed_and_reported(tmp_path: Path) -> None:
    assert "dummy" in lossscope("list", "measures")
    assert "dummy" in [row["name"] for row in json.loads(lossscope("list", "measures", "--json"))["measures"]]
    run = trained(tmp_path, "--optimizer", "sgd", "--steps", 4, "--set", "evaluations=2")
    recorded = run.probes[run.probes["measure"] == "dummy"]
    assert recorded["step"].tolist()[-1] == 4
    assert set(recorded["value"]) == {VALUE}
    assert "report flatness" in lossscope("probe", run.path, "--measures", "dummy")
    again = Run.open(run.path)
    assert (again.probes["measure"] == "dummy").sum() == len(recorded) + 1
    assert "dummy" in lossscope("report", "flatness", run.path)
    tables = {table.key: table for table in reports.flatness([again]).tables}
    shown = tables["other_measures"]
    place = [column.key for column in shown.columns].index("value")
    assert [row[place].value for row in shown.rows if row[0] == "dummy"] == [VALUE]
    for report in REPORTS:
        assert "run" in lossscope("report", report, run.path)


@pytest.mark.usefixtures("dummy_optimizer", "few_products")
def test_an_optimizer_registered_at_run_time_is_listed_trained_resumed_and_reported(tmp_path: Path) -> None:
    assert "dummy" in lossscope("list", "optimizers")
    rows = {row["name"]: row for row in json.loads(lossscope("list", "optimizers", "--json"))["optimizers"]}
    assert rows["dummy"]["source"] == "this test"
    settings = ("--optimizer", "dummy", "--set", "evaluations=2", "--set", "options.kept=1.5")
    run = trained(tmp_path, *settings, "--steps", 4)
    assert run.manifest["arm"] == "dummy"
    assert run.steps["loss"].notna().all()
    resumed = trained(tmp_path, *settings, "--steps", 6, "--resume")
    assert len(resumed.steps) == 6
    whole = trained(tmp_path / "whole", *settings, "--steps", 6)
    assert resumed.steps["loss"].tolist() == whole.steps["loss"].tolist()
    lossscope("probe", run.path, "--measures", "lambda_max")
    for report in REPORTS:
        assert "dummy" in lossscope("report", report, run.path)


@pytest.mark.usefixtures("dummy_optimizer", "few_products")
def test_ascents_take_a_rule_registered_at_run_time_as_their_base(tmp_path: Path) -> None:
    settings = ("--set", "options.base=dummy", "--set", "options.kept=1.0", "--set", "evaluations=0")
    run = trained(tmp_path, "--optimizer", "sam", *settings, "--steps", 3)
    assert run.steps["synced"].tolist() == [True, True, True]
