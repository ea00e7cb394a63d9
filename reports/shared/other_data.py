"""Table of measurements of another function: on other data, in another mode, or over other parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from lossscope.landscape.measures.catalogue import known_measures, reports_of
from lossscope.landscape.storage.deduplicate import of_one_function
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.quantities import number, row_quantity

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["other_data_table"]

_COLUMNS: Final = (
    Column("run", "run", words=True),
    Column("step", "step"),
    Column("measure", "measure", words=True),
    Column("block", "block", "", "– for the whole model", words=True),
    Column("value", "value ± error", "", "in the unit of the measure"),
    Column("data", "data", "", "first eight characters of the hash of the data", words=True),
    Column("mode", "mode", words=True),
    Column("parameters", "parameters", "", "over which the loss was differentiated"),
)
_NOTE: Final = (
    "These rows are in no other table and in no figure: they are of another function than the run's own curvature, "
    "whose data, mode and parameters are in the provenance. Do not compare them with it as if only the step differed."
)
_MOST: Final = 40


def other_data_table(runs: Sequence[Run], kind: str) -> tuple[Table, ...]:
    """Return the rows of a report's measures that are of another function than the curves; empty if there are none.

    Args:
        runs: The runs.
        kind: Kind of the report; each measure is listed where its own numbers are.
    """
    rows = [row for run in runs for row in _of_run(run, kind)]
    more = f" {len(rows) - _MOST} more rows are not listed." if len(rows) > _MOST else ""
    title = "Measured on other data, in another mode or over other parameters"
    return (Table("other_data", title, _COLUMNS, tuple(rows[:_MOST]), f"{_NOTE}{more}"),) if rows else ()


def _of_run(run: Run, kind: str) -> Iterable[tuple[Cell, ...]]:
    """Yield the rows of a run; of a value that was measured again, the last."""
    probes = run.probes
    if not len(probes):
        return
    others = probes[~of_one_function(probes, run.manifest.get("data_hash")) & probes["value"].notna()]
    others = others.drop_duplicates(["step", "measure", "tensor", "mode", "data_hash", "parameters"], keep="last")
    for row in others.to_dict("records"):
        if kind in _shown_in(str(row["measure"]), row["tensor"]):
            yield _row(run, {str(key): value for key, value in row.items()})


def _shown_in(measure: str, tensor: object) -> tuple[str, ...]:
    """Return the reports that show a measure; "sharpness" for one that the catalogue does not know."""
    return reports_of([(measure, tensor)]) if measure in known_measures() else ("sharpness",)


def _row(run: Run, row: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Return a row of the table."""
    parameters = number(row["parameters"])
    block, data, mode = (
        one if isinstance(one, str) else None for one in (row["tensor"], row["data_hash"], row["mode"])
    )
    numbers = row_quantity(row), data and data[:8], mode, None if parameters is None else int(parameters)
    return (run.name, int(row["step"]), str(row["measure"]), block, *numbers)
