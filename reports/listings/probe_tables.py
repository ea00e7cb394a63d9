"""Result of a probe as tables and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final, TypeAlias

from lossscope.landscape.measures.catalogue import group_of, known_measures, limit_of
from lossscope.landscape.measures.measure import WITHOUT_TOLERANCE
from lossscope.landscape.reprobe.result import Probed
from lossscope.landscape.run import Run
from lossscope.landscape.storage.schema import columns
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.quantities import number, row_quantity

__all__ = ["probe_json", "probe_tables"]

Row: TypeAlias = Mapping[str, Any]

_VALUES: Final = (
    Column("step", "step"),
    Column("measure", "measure", words=True),
    Column("block", "block", words=True),
    Column("value", "value ± error [95 %]", "", "± standard error with its 95 % interval, or ± bound"),
    Column("unit", "unit", words=True),
    Column("met", "bound met", words=True),
    Column("engine", "engine", words=True),
)
_COSTS: Final = (
    Column("step", "step"),
    Column("call", "group", words=True),
    Column("measures", "measures"),
    Column("products", "products", "", "Hessian products spent"),
    Column("seconds", "time", "s"),
    Column("gradients", "gradients", "", "time over the time of one gradient of the same loss"),
    Column("method", "method", "", "method of the Hessian products", words=True),
)
_ABSENT: Final = (
    Column("step", "step"),
    Column("measures", "measures", words=True),
    Column("why", "why", words=True),
)


def probe_tables(probed: Probed) -> tuple[Table, ...]:
    """Return the values with their error bounds, their cost, and the missing measures if there are any."""
    loss = Run.open(probed.run).loss_unit
    values = (*(_value(row, loss) for row in probed.rows), *_densities(probed, loss), *_curves(probed, loss))
    tables = (
        Table("measured", "Measured", _VALUES, values),
        Table("cost", "Cost", _COSTS, tuple(map(_cost, _groups(probed)))),
    )
    missing = tuple((one.step, ", ".join(one.measures), one.why) for one in probed.absent)
    return (*tables, Table("absent", "Not measured", _ABSENT, missing)) if missing else tables


def probe_json(probed: Probed) -> str:
    """Return one JSON object: every row with all columns of the table `probes`, missing values as null."""
    content = {
        "schema": 1,
        "run": str(probed.run),
        "steps": list(probed.steps),
        "rows": [{column: _plain(row.get(column)) for column in columns("probes")} for row in probed.rows],
        "densities": len(probed.whole_densities),
        "curves": len(probed.curves),
        "unmet": list(probed.unmet),
        "absent": [asdict(one) for one in probed.absent],
        "notes": list(probed.notes),
        "products": sum(rows[0]["products"] for rows in _groups(probed)),
        "seconds": probed.seconds,
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _value(row: Row, loss: str) -> tuple[Cell, ...]:
    """Return the cells of a measured value."""
    requested = limit_of(row["measure"]) not in WITHOUT_TOLERANCE
    met = ("yes" if row["converged"] else "no") if requested else None
    unit = _unit(row["measure"], loss)
    return (row["step"], row["measure"], row["tensor"], row_quantity(row), unit, met, row["engine"])


def _densities(probed: Probed, loss: str) -> Iterable[tuple[Cell, ...]]:
    """Yield a row for each density, which is a table rather than a value."""
    for row in probed.whole_densities:
        nodes = [len(one["nodes"]) for one in probed.densities if one["step"] == row["step"]]
        what = f"{nodes[0]} nodes, {len(nodes)} weights each" if nodes else None
        yield row["step"], row["measure"], None, what, _unit(row["measure"], loss), None, row["engine"]


def _curves(probed: Probed, loss: str) -> Iterable[tuple[Cell, ...]]:
    """Yield a row for each curve, which is a table rather than a value."""
    for row in probed.curves:
        what = f"{len(row['x'])} points of {row['samples']} draws"
        yield row["step"], row["measure"], None, what, _unit(row["measure"], loss), None, "lossscope"


def _unit(measure: str, loss: str) -> str:
    """Return the unit of a measure, with the unit of the run's loss; empty if that is unknown."""
    found = known_measures().get(measure)
    unit = "" if found is None else found.unit
    return unit.replace("loss", loss) if loss or "loss" not in unit else ""


def _groups(probed: Probed) -> list[list[Row]]:
    """Return the rows of each group of measures together, in the order of steps: they state the same cost."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in (*probed.rows, *probed.tabled):
        spent = row.get("products", 0), row["seconds"]
        key = (row["step"], group_of(row["measure"], row["tensor"]), row["engine"], *spent)
        groups.setdefault(key, []).append(row)
    return sorted(groups.values(), key=lambda rows: int(rows[0]["step"]))


def _cost(rows: list[Row]) -> tuple[Cell, ...]:
    """Return the cells of the cost of a group of measures."""
    first = rows[0]
    group = group_of(first["measure"], first["tensor"])
    seconds, gradients = number(first["seconds"]), number(first["gradients"])
    return (first["step"], group, len(rows), int(first["products"]), seconds, gradients, first.get("method"))


def _plain(value: object) -> object:
    """Return a value for JSON; null if it is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
