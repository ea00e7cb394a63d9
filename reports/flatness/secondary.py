"""Secondary measures of flatness: whatever a run has that the catalogue assigns to this report without a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.landscape.measures.measure import Measure
from lossscope.landscape.measures.measure_group import MeasureGroup
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.evaluation_tables import MOST_RUNS
from lossscope.reports.shared.loss_unit import loss_unit
from lossscope.reports.shared.quantities import number, row_quantity, summarized

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["secondary_tables"]

Declared: TypeAlias = tuple[Measure, MeasureGroup]
Found: TypeAlias = dict[str, dict[str, dict[Any, Any]]]  # rows by run and measure

_VALUE: Final = (
    Column("unit", "unit", words=True),
    Column("gradients", "cost", "", "of one evaluation, in times of one gradient; measures of one group share it"),
    Column("unchanged", "unchanged by", "", "maps of the weights that keep the function", words=True),
)
_ROUNDING: Final = 1e-4  # share of a value below which an interval is not shown
_NOTE: Final = (
    "Measures with one invariance stand together. One that a rescaling changes says as much about the scale of the "
    "weights as about the function. None of them decides a verdict."
)


def secondary_tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the values of the secondary measures by invariance, and what each measure is; none if no run has any."""
    declared = _by_invariance()
    found = {run.name: _last_rows(run, [measure.name for measure, _ in declared]) for run in runs}
    there = [one for one in declared if any(one[0].name in rows for rows in found.values())]
    if not there:
        return ()
    many = len(runs) > MOST_RUNS
    named = Column("arm", "arm", words=True) if many else Column("run", "run", words=True)
    title = "median [range over seeds]" if many else "value ± error [95 %]"
    value = Column("value", title, "", "in the unit beside it; what the error is stands in the next table")
    columns = (Column("measure", "measure", words=True), named, Column("step", "step"), value, *_VALUE)
    rows = tuple(row for one in there for row in (_of_arms if many else _of_runs)(runs, one, found))
    return (
        Table("other_measures", "Other measures at the last step that has each", columns, rows, _NOTE),
        _meanings(there),
    )


def _by_invariance() -> list[Declared]:
    """Return the measures that the catalogue assigns to this report, those of one invariance together."""
    declared = [
        (measure, group)
        for group in GROUPS.values()
        if "flatness" in group.reports and not group.own_table
        for measure in group.measures
    ]
    order = list(dict.fromkeys(measure.invariance for measure, _ in declared))
    return sorted(declared, key=lambda one: order.index(one[0].invariance))


def _last_rows(run: Run, names: Sequence[str]) -> dict[str, dict[Any, Any]]:
    """Return the last row of each measure of the whole model: each at its own step."""
    rows = run.estimates[run.estimates["measure"].isin(names) & run.estimates["tensor"].isna()]
    return {str(row["measure"]): row for row in rows.sort_values("step", kind="stable").to_dict("records")}


def _of_runs(runs: Sequence[Run], one: Declared, found: Found) -> Iterable[tuple[Cell, ...]]:
    """Yield the rows of a measure, one for each run that has it."""
    for members in by_arm(runs).values():
        for run in members:
            row = found[run.name].get(one[0].name)
            if row is not None:
                value = _readable(row_quantity(row))
                yield _row(one, runs, run.name, int(row["step"]), value, number(row["gradients"]))


def _of_arms(runs: Sequence[Run], one: Declared, found: Found) -> Iterable[tuple[Cell, ...]]:
    """Yield the rows of a measure, one for each arm that has it."""
    for arm, members in by_arm(runs).items():
        rows = [row for run in members if (row := found[run.name].get(one[0].name)) is not None]
        if rows:
            steps = {int(row["step"]) for row in rows}
            cost = summarized(Quantity(number(row["gradients"])) for row in rows).value
            value = summarized(map(row_quantity, rows))
            yield _row(one, runs, arm, steps.pop() if len(steps) == 1 else None, value, cost)


def _readable(found: Quantity) -> Quantity:
    """Return a number without an interval that is rounding alone, which limits its digits all the same."""
    if not found.value or found.low is None or found.high is None:
        return found
    half = (found.high - found.low) / 2
    return Quantity(found.value, known_error=half) if half < _ROUNDING * abs(found.value) else found


def _row(
    one: Declared, runs: Sequence[Run], name: str, step: int | None, value: Quantity, cost: float | None
) -> tuple[Cell, ...]:
    """Return a row of the table of values."""
    measure, group = one
    unit = loss_unit(runs)
    shown = measure.unit.replace("loss", unit) if unit or "loss" not in measure.unit else ""
    title = f"{measure.name} (legacy)" if group.legacy else measure.name
    dimension = "" if shown == "1" else shown
    return (title, name, step, value, dimension, Quantity(cost, known_error=1.0), measure.invariance)


def _meanings(there: Sequence[Declared]) -> Table:
    """Return what each measure is, what its error is, and what it costs, in the words of the catalogue."""
    columns = (
        Column("measure", "measure", words=True),
        Column("meaning", "is", "", "in the words of the catalogue", words=True),
        Column("bound", "its error", "", "meaning of its interval", words=True),
        Column("cost", "takes", "", "what one evaluation takes", words=True),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (measure.name, measure.meaning, measure.bound.value, group.cost_in_words) for measure, group in there
    )
    return Table("other_measures_declared", "What the other measures are", columns, rows)
