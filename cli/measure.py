"""`lossscope measure`: curvature, flatness and matrix spectra of checkpoints that nobody recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from lossscope.cli.amounts import duration_text
from lossscope.cli.measured_loss import LossSource, chosen_loss
from lossscope.cli.options import JsonOption
from lossscope.cli.progress import progress_bar
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.unrecorded.measure import Measured, Plan
    from lossscope.landscape.unrecorded.price import MeasurePrice

__all__ = ["measure"]

_LONG: Final = 3600.0  # seconds from which a measurement asks for --yes
_RUNS: Final = Path("runs")
_MOST_DIGITS: Final = 15


def measure(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CKPT...",
            help="Files of weights (.pt, .pth, .bin, .ckpt, .safetensors, an index of shards), folders of Hugging Face "
            "(checkpoint-500), folders of any of them, or recorded runs. Default with --hf: MODEL_DIR.",
            show_default=False,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="A function without arguments that returns the Objective; the weights are loaded into its model. This "
            "runs the code in FILE.py. Default: no loss, only the matrices.",
        ),
    ] = None,
    hf: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL_DIR",
            help="In place of it the loss of a causal language model of Hugging Face on --text: the folder of its "
            "config.json and tokenizer. Nothing is downloaded.",
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="Text for --hf.")] = None,
    timm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="In place of it the cross-entropy of a timm model on --images."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Images for --timm, in a folder for each class.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Blocks of text or images that are measured on, at most (64).", show_default=False),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Of them in a forward pass (8).", show_default=False)] = None,
    sequence: Annotated[int | None, typer.Option(help="Tokens in a block of text (128).", show_default=False)] = None,
    measures: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Measures or groups of measures of the loss, as for `lossscope probe`."),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="The run that is written; an earlier call into it is continued. Default: runs/measured-NAME, with the "
            "name of the folder of the checkpoints.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="STEP,...", help="Steps of the checkpoints in their order. Default: from their names."),
    ] = None,
    rel: Annotated[str, typer.Option(metavar="SHARE", help="Error bound to reach, such as 1% or 0.01.")] = "1%",
    max_products: Annotated[int, typer.Option(help="Hessian products that each group of measures may spend.")] = 200,
    engine: Annotated[
        Literal["lossscope", "pyhessian"],
        typer.Option(help="pyhessian gives a second opinion on eigenvalues and trace."),
    ] = "lossscope",
    seed: Annotated[int, typer.Option(help="Seed of the random vectors.")] = 0,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory for the vectors, such as 6GB. Default: half of what is available."),
    ] = None,
    spill: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the Krylov basis where it does not fit into memory.")
    ] = None,
    matrices: Annotated[
        bool, typer.Option("--matrices/--no-matrices", help="Measure singular values and norms of the matrices.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell the price and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Measure even if it takes more than an hour.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure checkpoints that nobody recorded, and write a run that every report reads.

    Without a loss these are singular values, entropies and norms of all matrices. A second call with the same settings
    continues: checkpoints that are finished are left out, so an interruption loses only the one it is at.

    Example: lossscope measure out/checkpoint-500 out/checkpoint-1000

    Example: lossscope measure out --objective mine.py:objective --measures lambda_max,trace --into runs/out

    Example: lossscope measure out/checkpoint-500 --hf out/checkpoint-500 --text held_out.txt --measures lambda_max
    """
    from lossscope.landscape.errors import ConfigError
    from lossscope.landscape.unrecorded.measure import carry_out, planned
    from lossscope.landscape.unrecorded.price import price_of_plan
    from lossscope.landscape.unrecorded.sources import find_checkpoints

    paths = checkpoints or ([] if hf is None else [hf])
    found = find_checkpoints(paths, _numbers(steps))
    run = into or _RUNS / _name(paths)
    source = LossSource(objective, hf, text, timm, images, samples, batch, sequence)
    loss = chosen_loss(source, measures, (rel, max_products, seed, engine, memory, spill))
    plan = planned(found, loss, run, matrices=matrices)
    price = price_of_plan(plan) if plan.left else None
    if dry_run:
        echo(_price_in_words(price))
        return
    if price is not None and price.seconds > _LONG and not yes:
        raise ConfigError(f"this takes {_price_in_words(price)}: add --yes, or take fewer checkpoints or --measures")
    with progress_bar(f"measure into {run.name}") as progress:
        done = carry_out(plan, progress)
    if as_json:
        echo(json.dumps(_facts(plan, done), indent=2, ensure_ascii=False), format="json")
        return
    _tell(plan, done)


def _numbers(steps: str | None) -> list[int] | None:
    """Return the steps in a comma-separated list.

    Raises:
        ConfigError: One is no step.
    """
    from lossscope.landscape.errors import ConfigError
    from lossscope.landscape.training.config import shown

    if steps is None:
        return None
    words = [word.strip() for word in steps.split(",")]
    for word in words:
        if not (word.isascii() and word.isdecimal()) or len(word) > _MOST_DIGITS:
            raise ConfigError(f"--steps {shown(word)} is no step: give numbers separated by commas, such as 0,500")
    return [int(word) for word in words]


def _name(paths: Sequence[Path]) -> str:
    """Return the default name of the run: that of the folder of the checkpoints."""
    places = [path.absolute() for path in paths]
    own = places[0] if len(places) == 1 else places[0].parent
    if own.is_dir() and len(places) == 1 and own.name.startswith("checkpoint") and own.parent.name:
        own = own.parent
    return f"measured-{re.sub(r'[^A-Za-z0-9@_-]+', '-', own.stem).strip('-')[:80] or 'checkpoints'}"


def _price_in_words(price: MeasurePrice | None) -> str:
    """Return the price in words."""
    if price is None:
        return "nothing: every checkpoint is finished"
    count = f"{price.checkpoints} checkpoint{'s' * (price.checkpoints > 1)} of {price.parameters} parameters"
    parts = [f"matrices {duration_text(price.matrices)} each"] if price.matrices else []
    if price.curvature is None:
        parts.append(f"measures of the loss unknown ({price.unknown})")
    elif price.curvature:
        parts.append(f"measures of the loss at most {duration_text(price.curvature)} each")
    return f"about {duration_text(price.seconds)} for {count}: {', '.join(parts)}"


def _tell(plan: Plan, done: Measured) -> None:
    """Print the checkpoints, what is missing, and which reports show the rows."""
    from lossscope.reports.content import Column, Table
    from lossscope.reports.render.text import table_text

    columns = (Column("step", "step"), Column("checkpoint", "checkpoint", words=True), Column("state", "", words=True))
    rows = tuple(
        (one.step, str(one.path), "measured" if one.step in plan.left else "finished before")
        for one in plan.checkpoints
    )
    echo(table_text(Table("checkpoints", "Checkpoints", columns, rows), text_width()))
    if done.absent:
        why = (Column("step", "step"), Column("measures", "not measured", words=True), Column("why", "why", words=True))
        missing = tuple((one.step, ", ".join(one.measures), one.why) for one in done.absent)
        echo(table_text(Table("absent", "Not measured", why, missing), text_width()))
    for note in done.notes:
        echo(f"Note: {note}")
    reports = ("sharpness", "flatness", "entropy") if plan.loss is not None else ("entropy",)
    read = ", ".join(f"`lossscope report {report} {done.run}`" for report in reports)
    rows_in_words = (
        f"Added {done.rows} rows to {done.run} in {duration_text(done.seconds)}" if done.rows else "No new row"
    )
    echo(f"{rows_in_words}; read them with {read}")


def _facts(plan: Plan, done: Measured) -> dict[str, Any]:
    """Return everything as values of JSON."""
    return {
        "schema": 1,
        "run": str(done.run),
        "checkpoints": [
            {
                "step": one.step,
                "path": str(one.path),
                "sha256": plan.run.finished[one.step].sha256,
                "measured": one.step in plan.left,
                "measures": list(plan.run.finished[one.step].measures),
            }
            for one in plan.checkpoints
        ],
        "rows": done.rows,
        "absent": [{"step": one.step, "measures": list(one.measures), "why": one.why} for one in done.absent],
        "notes": list(done.notes),
        "seconds": done.seconds,
    }
