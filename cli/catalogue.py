"""`lossscope list`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["list_app"]

list_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List optimizers, workloads or measures.")

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print(kind: str, descriptions: dict[str, str], as_json: bool) -> None:
    if as_json:
        rows = [{"name": name, "description": text} for name, text in descriptions.items()]
        typer.echo(json.dumps({"schema": 1, kind: rows}, indent=2))
        return
    width = max(map(len, descriptions))
    for name, text in descriptions.items():
        typer.echo(f"{name:<{width}}  {text}")


@list_app.command()
def optimizers(as_json: _Json = False) -> None:
    """Print the optimizers that `train` knows.

    Example: lossscope list optimizers
    """
    from lossscope.optimizer import DESCRIPTIONS

    _print("optimizers", dict(DESCRIPTIONS), as_json)


@list_app.command()
def workloads(as_json: _Json = False) -> None:
    """Print the networks and data that `train` knows.

    Example: lossscope list workloads --json
    """
    from lossscope.landscape.workload import WORKLOADS

    _print("workloads", {name: w.description for name, w in WORKLOADS.items()}, as_json)


@list_app.command()
def measures(as_json: _Json = False) -> None:
    """Print the measures that a run can hold, with their units.

    Example: lossscope list measures
    """
    from lossscope.landscape.measure import MEASURES

    _print("measures", {m.name: f"[{m.unit}] {m.meaning}" for m in MEASURES}, as_json)
