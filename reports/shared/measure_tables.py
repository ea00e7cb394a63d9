"""Tables with a column per measure and a row per run, at the last step with any of the measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.evaluation_tables import MOST_RUNS
from lossscope.reports.shared.known_errors import with_known_error
from lossscope.reports.shared.quantities import row_quantity, summarized

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["measure_table", "other_measures_table"]

_ARM: Final = (Column("arm", "arm", words=True), Column("runs", "runs", "", "runs that have these numbers"))
_RUN: Final = (Column("run", "run", words=True), Column("step", "step", "", "the last step that has these numbers"))
_OTHER_NOTE: Final = "See `lossscope list measures` for the meaning of each measure and docs/measures for its pitfalls."


def measure_table(runs: Sequence[Run], key: str, title: str, columns: Sequence[Column], note: str) -> tuple[Table, ...]:
    """Return a table of measures, without the columns that no run has; none if no run has any of them.

    Args:
        runs: The runs.
        key: Key of the table.
        title: Title; "at the last step that has it" is added.
        columns: A column per measure, its key the name of the measure.
        note: Note below the table.
    """
    found = [(run, *_last(run, [column.key for column in columns])) for arm in by_arm(runs).values() for run in arm]
    there = [(run, step, values) for run, step, values in found if values]
    kept = [column for column in columns if any(column.key in values for _, _, values in there)]
    if not there:
        return ()
    if len(there) > MOST_RUNS:
        return (_of_arms(key, title, kept, {run.name: values for run, _, values in there}, runs, note),)
    rows = tuple(
        (run.name, step, *(values.get(column.key, Quantity(None)) for column in kept)) for run, step, values in there
    )
    return (Table(key, f"{title}, at the last step that has it", (*_RUN, *kept), rows, note),)


def _of_arms(
    key: str,
    title: str,
    columns: Sequence[Column],
    found: Mapping[str, Mapping[str, Quantity]],
    runs: Sequence[Run],
    note: str,
) -> Table:
    """Return one row for each arm: the number of its runs with any of the measures, and medians and ranges."""
    rows: list[tuple[Cell, ...]] = []
    for arm, members in by_arm(runs).items():
        there = [found[run.name] for run in members if run.name in found]
        if there:
            cells = (summarized(one.get(column.key, Quantity(None)) for one in there) for column in columns)
            rows.append((arm, len(there), *cells))
    return Table(
        key, f"{title}, at the last step that has it: median [range over runs]", (*_ARM, *columns), tuple(rows), note
    )


def other_measures_table(runs: Sequence[Run], report: str) -> tuple[Table, ...]:
    """Return the table of the measures that the catalogue assigns to a report without a table of their own.

    Args:
        runs: The runs.
        report: Kind of the report.
    """
    columns = [
        Column(
            measure.name, f"{measure.name} (legacy)" if group.legacy else measure.name, measure.unit, measure.meaning
        )
        for group in GROUPS.values()
        if report in group.reports and not group.own_table
        for measure in group.measures
    ]
    return measure_table(runs, "other_measures", "Other measures", columns, _OTHER_NOTE)


def _last(run: Run, measures: Sequence[str]) -> tuple[Cell, dict[str, Quantity]]:
    """Return the last step with any of the measures of the whole model, and the measures at that step."""
    rows: pd.DataFrame = run.estimates[run.estimates["measure"].isin(measures) & run.estimates["tensor"].isna()]
    if not len(rows):
        return None, {}
    step = int(rows["step"].max())
    last = rows[rows["step"] == step].to_dict("records")
    return step, {
        name: with_known_error(row_quantity(row), run, step, name) for row in last if (name := row["measure"])
    }
