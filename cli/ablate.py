"""`lossscope ablate`: train the runs of a grid that are missing, and print what each part does."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lossscope.cli.amounts import bytes_text, duration_text
from lossscope.cli.options import JsonOption
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.experiments.ablation import Ablation
    from lossscope.landscape.experiments.controls import Controls
    from lossscope.landscape.experiments.grid import Grid
    from lossscope.landscape.experiments.plan import Plan
    from lossscope.landscape.verdicts.contrasts import ContrastTable

__all__ = ["ablate"]

_MOST_LISTED = 10  # runs that are not finished


def ablate(
    grid: Annotated[
        str, typer.Argument(metavar="GRID.toml|parts", help="A grid of arms, or the name of one that ships.")
    ],
    jobs: Annotated[int | None, typer.Option(help="Parallel trainings. Default: one a core.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Tell cost and smallest visible effect; train nothing.")] = False,
    out: Annotated[str | None, typer.Option(help="Folder of experiments [runs].")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds, in place of those of the grid.")] = None,
    level: Annotated[str | None, typer.Option(metavar="LOSS|lowest", help="Training loss of the comparison.")] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="A backend of joblib, such as dask for many machines.")
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME", help="A function that returns the Workload to train. This runs the code in FILE.py."
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a line a run with its numbers.")] = None,
    as_json: JsonOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the runs.")] = False,
) -> None:
    """Train what is missing of a grid of arms with paired seeds, then print what each part does to sharpness.

    Interrupt it at any time: the same command goes on where it stopped. Runs that diverge are listed, and the others go
    on. The table compares arms at equal training loss, with intervals over the seeds.

    Example: lossscope ablate parts --plan
    """
    from lossscope.cli.progress import progress_bar
    from lossscope.landscape.errors import RunError
    from lossscope.landscape.experiments.ablation import ablate as train_grid
    from lossscope.landscape.experiments.plan import planned
    from lossscope.reports.render.output import refuse_taken

    chosen = _grid(grid, out=out, seeds=seeds, level=level)
    if plan:
        found = planned(chosen, jobs=jobs, workload=workload, force=force)
        text = json.dumps(_plan_facts(found), indent=2) if as_json else _plan_text(chosen, found)
        echo(text, format="json" if as_json else "text")
        return
    if csv is not None:
        if os.path.lexists(csv):  # --force would replace the runs, too
            raise RunError(f"{csv} exists; choose another file with --csv")
        refuse_taken(csv, force=False)
    with progress_bar(chosen.name) as progress:
        made = train_grid(chosen, jobs=jobs, backend=backend, workload=workload, force=force, progress=progress)
    _print(made, csv, as_json=as_json)


def _grid(source: str, *, out: str | None, seeds: int | None, level: str | None) -> Grid:
    """Return the grid with the settings of the command line in place of its own."""
    from lossscope.landscape.experiments.grid import read_grid

    given = {"out": out, "seeds": seeds, "level": level if level in (None, "lowest") else _number(level)}
    return read_grid(source, {key: value for key, value in given.items() if value is not None})


def _number(text: str | None) -> float:
    """Return a number; nan, which no level may be, for any other text."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _print(made: Ablation, csv: Path | None, *, as_json: bool) -> None:
    """Print the table of contrasts and the controls; write the file of values.

    Raises:
        TrainingError: No run could be trained.
    """
    from lossscope.landscape.errors import TrainingError
    from lossscope.landscape.experiments.controls import controls, sentences
    from lossscope.landscape.experiments.judgement import judged
    from lossscope.landscape.experiments.values import csv_text, values_of
    from lossscope.reports.render.output import write_text

    if not made.finished:
        first = made.lost[0]
        raise TrainingError(f"none of {len(made.outcomes)} runs could be trained; {first.name}: {first.why}")
    runs = made.runs
    table = judged(made.grid, runs)
    checked = controls(made.grid.contrasts, runs)
    values = values_of(made, None if table is None else table.level)
    if csv is not None:
        write_text(csv, csv_text(values), force=False)
    if as_json:
        echo(json.dumps(_facts(made, table, checked, values), indent=2, allow_nan=False), format="json")
        return
    echo(_heading(made))
    if table is not None:
        echo(_table_text(made, table))
    for line in sentences(checked):
        echo(line)
    if made.grid.contrasts and table is None:
        echo("Curvature was not evaluated (evaluations = 0), so that no contrast has a number.")
    elif made.grid.contrasts:
        arms = " ".join(next(iter(made.grid.contrasts.values())))
        echo(f"One sentence and the seeds behind a line: lossscope compare {arms} --in {_folder(made)}")


def _folder(made: Ablation) -> str:
    """Return the folder of the runs as text."""
    return str(made.grid.folder)


def _heading(made: Ablation) -> str:
    """Return how many runs there are, what they took, and which are not finished."""
    grid = made.grid
    steps = grid.settings.get("steps")
    words = f"{grid.name}: {len(made.outcomes)} runs{'' if steps is None else f' of {steps} steps'}"
    diverged = sum(one.status == "diverged" for one in made.outcomes)
    failed = len(made.lost) - diverged
    words += f" on {', '.join(grid.workloads)}, {len(made.finished)} finished, {diverged} diverged"
    words += f", {failed} failed" if failed else ""
    lines = [f"{words}; {duration_text(made.seconds)}, {bytes_text(made.bytes)} in {_folder(made)}"]
    lines += [f"  {one.name} {one.status}: {one.why}" for one in made.lost[:_MOST_LISTED]]
    if len(made.lost) > _MOST_LISTED:
        lines.append(f"  and {len(made.lost) - _MOST_LISTED} more")
    return "\n".join(lines)


def _table_text(made: Ablation, table: ContrastTable) -> str:
    """Return the contrasts as text."""
    from lossscope import __version__
    from lossscope.reports.comparison.contrasts import contrasts_report
    from lossscope.reports.render.text import table_text

    document = contrasts_report(table, made.runs, version=__version__)
    parts = [document.subtitle, *(table_text(one, text_width()) for one in document.tables), *document.notes]
    return "\n".join(parts)


def _facts(made: Ablation, table: ContrastTable | None, checked: Controls, values: list[dict[str, Any]]) -> Any:
    """Return everything as values of JSON."""
    from dataclasses import asdict

    facts = {
        "schema": 1,
        "name": made.grid.name,
        "folder": _folder(made),
        "seconds": made.seconds,
        "bytes": made.bytes,
        "finished": len(made.finished),
        "lost": [asdict(one) for one in made.lost],
        "level": None if table is None else table.level,
        "confidence": None if table is None else table.confidence,
        "contrasts": [] if table is None else [_contrast(one) for one in table.contrasts],
        "controls": asdict(checked),
        "runs": values,
    }
    return _finite(facts)


def _contrast(one: Any) -> dict[str, Any]:
    """Return a contrast as values of JSON; the curves of its figures are left out."""
    from dataclasses import asdict

    facts = asdict(one)
    facts["verdict"].pop("figures", None)
    return facts


def _finite(value: Any) -> Any:
    """Return a value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plan_facts(plan: Plan) -> Any:
    """Return a plan as values of JSON."""
    from dataclasses import asdict

    return {"schema": 1, **_finite(asdict(plan))}


def _plan_text(grid: Grid, plan: Plan) -> str:
    """Return a plan as text."""
    there = ", ".join(f"{count} {state}" for state, count in plan.states.items() if count)
    size = f"{len(grid.arms)} arms, {len(grid.seeds)} seeds"
    lines = [f"{grid.name}: {plan.runs} runs in {grid.folder} ({size}): {there}"]
    for arm in plan.arms:
        name = arm.arm if len(grid.workloads) == 1 else f"{arm.arm} on {arm.workload}"
        lines.append(
            f"  {name}: {1000 * arm.step_seconds:.1f} ms a step, {arm.evaluation_seconds:.2g} s an evaluation, "
            f"{arm.seconds:.3g} s and {bytes_text(arm.bytes)} a run"
        )
    lines.append(f"About {duration_text(plan.seconds)} with {plan.jobs} jobs, {bytes_text(plan.bytes)}.")
    return "\n".join([*lines, _power(plan)])


def _power(plan: Plan) -> str:
    """Return which effect the design can show."""
    if plan.pairs == 1:
        return "One pair decides nothing, 6 are needed: add --seeds 6."
    source = "as in the runs that are there" if plan.measured else "as usual"
    words = (
        f"{plan.pairs} pairs show a sharpness ratio of {plan.smallest:.2f} or less with 80 % power, if seeds differ by "
        f"{100 * plan.spread:.0f} % ({source})."
    )
    return words if plan.enough else f"{words} A verdict needs 6 pairs: add --seeds 6."
