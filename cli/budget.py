"""`lossscope budget`: what measuring curvature costs, before anything is measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lossscope.cli.amounts import bytes_text, duration_text
from lossscope.cli.options import JsonOption
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.measures.costs import GroupCost
    from lossscope.probes.budget import Price
    from lossscope.probes.objective.objective import Objective
    from lossscope.reports.content import Table

__all__ = ["budget"]


def budget(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|WORKLOAD]", help="A run, or the name of a workload.", show_default=False),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="In place of it a function that returns an Objective. This runs the code in FILE.py.",
        ),
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Measures or groups of measures, as for `lossscope probe`."),
    ] = None,
    max_products: Annotated[int, typer.Option(help="Hessian products that each group of measures may spend.")] = 200,
    memory: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="For the vectors, such as 6GB. Default: half of what is available."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict memory, time and gradients of curvature measures from a formula and one timed product.

    Every number is what a group takes at most: an easy spectrum needs fewer products.

    Example: lossscope budget runs/demo/adamw@rms-s0 --measures lambda_max,trace

    Example: lossscope budget --objective mine.py:objective --memory 6GB
    """
    from lossscope.cli.probe import measure_names, solver_options
    from lossscope.landscape.measures.costs import costs_of
    from lossscope.landscape.reprobe.selection import check_budget, select_measures
    from lossscope.probes import hessian
    from lossscope.probes.budget import price_of
    from lossscope.probes.eigenvalues.memory_plan import memory_for

    options = solver_options("1%", max_products, 0, "lossscope", memory, None)
    chosen = select_measures(None if measures is None else measure_names(measures), "lossscope")
    loss = _objective(target, objective)
    check_budget(chosen, options, loss.size)
    operator = hessian(loss)
    room = memory_for(operator, memory)
    price = price_of(operator)
    found = costs_of(chosen, options, price, room)
    if as_json:
        echo(json.dumps(_facts(found, price, room), indent=2, allow_nan=False), format="json")
        return
    from lossscope.reports.render.text import table_text

    echo(_heading(price, room))
    echo(table_text(_table(found), text_width()))
    echo("Each group takes this much at most; with --memory less is held, and bounds may be reached later.")


def _objective(target: str | None, place: str | None) -> Objective:
    """Return the loss that a run, a workload or a file names."""
    from lossscope.landscape.errors import ConfigError
    from lossscope.landscape.reprobe.rebuilt_run import rebuilt_job
    from lossscope.landscape.reprobe.user_objective import objective_from
    from lossscope.landscape.run import Run
    from lossscope.landscape.training.config import TrainConfig
    from lossscope.landscape.training.setup import job_of
    from lossscope.landscape.training.workloads import WORKLOADS

    if (target is None) == (place is None):
        raise ConfigError("give a run or a workload, or --objective FILE.py:NAME, and not both")
    if place is not None:
        return objective_from(place)
    assert target is not None
    if target in WORKLOADS or not Path(target).exists():
        return job_of(TrainConfig.of({"workload": target})).objective
    return rebuilt_job(Run.open(target), "give its loss by --objective FILE.py:NAME").objective


def _heading(price: Price, room: int) -> str:
    """Return what one product costs, in words."""
    taken = "unknown" if price.product_bytes is None else bytes_text(price.product_bytes)
    return (
        f"{price.parameters} parameters; a product takes {duration_text(price.product_seconds)}, {price.gradients:.2g} "
        f"gradients ({price.method}), and {taken} beside the vectors; the vectors may take {bytes_text(room)}"
    )


def _table(found: list[GroupCost]) -> Table:
    """Return the costs as a table."""
    from lossscope.landscape.measures.catalogue import GROUPS
    from lossscope.reports.content import Column, Table

    columns = (
        Column("group", "group", words=True),
        Column("measures", "measures"),
        Column("products", "products", "", "Hessian products, at least and at most", words=True),
        Column("vectors", "vectors", "", "of the length of the parameters, held at most"),
        Column("bytes", "memory", words=True),
        Column("seconds", "time", words=True),
        Column("gradients", "gradients", words=True),
    )
    rows = [
        (
            one.group,
            len(one.measures),
            f"{one.least} - {one.products}" if one.budgeted else "a few",
            one.vectors,
            bytes_text(one.bytes),
            "" if one.seconds is None else duration_text(one.seconds),
            "" if one.gradients is None or math.isnan(one.gradients) else f"{one.gradients:.3g}",
        )
        for one in found
    ]
    words = "; ".join(f"{one.group}: {cost}" for one in found if (cost := GROUPS[one.group].cost))
    return Table("budget", "Cost at most", columns, tuple(rows), f"Beside products, {words}." if words else "")


def _facts(found: list[GroupCost], price: Price, room: int) -> dict[str, Any]:
    """Return everything as values of JSON."""
    from dataclasses import asdict

    def finite(facts: dict[str, Any]) -> dict[str, Any]:
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}

    return {
        "schema": 1,
        "memory": room,
        "product": finite(asdict(price)),
        "groups": [finite(asdict(one)) for one in found],
    }
