"""What a probe measured, as tables and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final, TypeAlias

from lossscope.landscape.curvature.catalogue import MEASURES, UNASKED, call_of, limit_of
from lossscope.landscape.reprobe.result import Probed
from lossscope.landscape.storage.schema import columns
from lossscope.reports.content import Cell, Column, Table
from lossscope.reports.shared.quantities import number, row_quantity

__all__ = ["probe_json", "probe_tables"]

Row: TypeAlias = Mapping[str, Any]

_UNITS: Final = {measure.name: measure.unit for measure in MEASURES}
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
    Column("call", "call", words=True),
    Column("measures", "measures"),
    Column("products", "products", "", "Hessian products spent"),
    Column("seconds", "time", "s"),
    Column("gradients", "gradients", "", "the same time in gradients of the same loss"),
    Column("method", "method", "", "what took the products", words=True),
)
_ABSENT: Final = (
    Column("step", "step"),
    Column("measures", "measures", words=True),
    Column("why", "why", words=True),
)


def probe_tables(probed: Probed) -> tuple[Table, ...]:
    """The numbers with their bounds, what they cost, and what is missing where anything is."""
    tables = (
        Table("measured", "Measured", _VALUES, (*map(_value, probed.rows), *_densities(probed))),
        Table("cost", "What it cost", _COSTS, tuple(map(_cost, _calls(probed)))),
    )
    missing = tuple((one.step, ", ".join(one.measures), one.why) for one in probed.absent)
    return (*tables, Table("absent", "Not measured", _ABSENT, missing)) if missing else tables


def probe_json(probed: Probed) -> str:
    """The same as one JSON object: every row with all columns of the probes table, a gap as null."""
    content = {
        "schema": 1,
        "run": str(probed.run),
        "steps": list(probed.steps),
        "rows": [{column: _plain(row.get(column)) for column in columns("probes")} for row in probed.rows],
        "densities": len(probed.whole_densities),
        "unmet": list(probed.unmet),
        "absent": [asdict(one) for one in probed.absent],
        "products": sum(call[0]["products"] for call in _calls(probed)),
        "seconds": probed.seconds,
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _value(row: Row) -> tuple[Cell, ...]:
    """A measured number."""
    asked = limit_of(row["measure"]) not in UNASKED
    met = ("yes" if row["converged"] else "no") if asked else None
    unit = _UNITS.get(row["measure"], "")
    return (row["step"], row["measure"], row["tensor"], row_quantity(row), unit, met, row["engine"])


def _densities(probed: Probed) -> Iterable[tuple[Cell, ...]]:
    """A row for each density, which is a table and no number."""
    for row in probed.whole_densities:
        nodes = [len(one["nodes"]) for one in probed.densities if one["step"] == row["step"]]
        what = f"{nodes[0]} nodes, {len(nodes)} weights each" if nodes else None
        yield row["step"], row["measure"], None, what, _UNITS[row["measure"]], None, row["engine"]


def _calls(probed: Probed) -> list[list[Row]]:
    """The rows of each call together, steps in order: they name the same cost."""
    calls: dict[tuple[object, ...], list[Row]] = {}
    for row in (*probed.rows, *probed.whole_densities):
        key = (row["step"], call_of(row["measure"], row["tensor"]), row["engine"], row["products"], row["seconds"])
        calls.setdefault(key, []).append(row)
    return sorted(calls.values(), key=lambda rows: int(rows[0]["step"]))


def _cost(rows: list[Row]) -> tuple[Cell, ...]:
    """What a call cost."""
    first = rows[0]
    call = call_of(first["measure"], first["tensor"])
    seconds, gradients = number(first["seconds"]), number(first["gradients"])
    return (first["step"], call, len(rows), int(first["products"]), seconds, gradients, first.get("method"))


def _plain(value: object) -> object:
    """A value as JSON has it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
