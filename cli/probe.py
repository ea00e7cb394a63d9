"""`lossscope probe`: measure saved checkpoints of a run after training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from lossscope.cli.options import JsonOption
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.measures.options import SolverOptions
    from lossscope.landscape.reprobe.result import Probed

__all__ = ["measure_names", "probe", "share_of", "solver_options"]

_MOST: Final = 2**31 - 1
_MOST_DIGITS: Final = 18
_NEXT_STEPS: Final = {  # by Limit
    "effort": "Bounds not met: {}; raise --max-products or --rel",
    "depth": "The Krylov space is too small for {}, as their intervals show: measure density alone, with more "
    "--max-products",
    "data": "The searches behind {} did not meet their bound: raise --max-products or --rel",
    "batches": "Only more batches narrow the interval of {}: measure an objective of more batches",
}


def probe(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, finished, failed or crashed.", show_default=False)],
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP|all", help="Steps of checkpoints, or all. Default: the last one. Repeatable."),
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Measures or groups of measures, separated by commas; `lossscope list measures` lists both and the "
            "default.",
        ),
    ] = None,
    rel: Annotated[str, typer.Option(metavar="SHARE", help="Error bound to reach, such as 1% or 0.01.")] = "1%",
    max_products: Annotated[int, typer.Option(help="Hessian products that each group of measures may spend.")] = 200,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="A function without arguments that returns the Objective to measure; the checkpoint's weights are "
            "loaded into its model. This runs the code in FILE.py. Default: the run's own workload.",
        ),
    ] = None,
    engine: Annotated[
        Literal["lossscope", "pyhessian"],
        typer.Option(help="pyhessian gives a second opinion on eigenvalues and trace."),
    ] = "lossscope",
    seed: Annotated[int, typer.Option(help="Seed of the random vectors.")] = 0,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for the vectors of a measurement, such as 6GB; what does not fit is measured without a part "
            "of the Krylov basis, as the rows say. Default: half of what is available.",
        ),
    ] = None,
    spill: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the Krylov basis where it does not fit into memory.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure checkpoints of a run and append the numbers to it; prints them with bounds and cost.

    The status of the run and the recorded rows stay as they are. If a value exists twice, reports use the one measured
    last on the run's own data, and prefer lossscope over pyhessian.

    Example: lossscope probe runs/demo/adamw@rms-s0 --checkpoint all --measures lambda_max,trace --rel 1%

    Example: lossscope probe runs/mine --objective mine.py:objective --measures per_module --json
    """
    from lossscope.cli.progress import progress_bar
    from lossscope.landscape.reprobe.checkpoint_probe import probe as measure

    names = None if measures is None else measure_names(measures)
    effort = solver_options(rel, max_products, seed, engine, memory, spill)
    steps = _steps(checkpoint)
    with progress_bar(f"probe {run.name}") as progress:
        found = measure(run, at=steps, measures=names, effort=effort, objective=objective, progress=progress)
    from lossscope.reports.listings.probe_tables import probe_json, probe_tables
    from lossscope.reports.render.text import table_text

    if as_json:
        echo(probe_json(found), format="json")
        return
    for table in probe_tables(found):
        echo(table_text(table, text_width()))
    for note in found.notes:
        echo(f"Note: {note}.")
    echo(_added(found))


def _added(found: Probed) -> str:
    """Return what was added, which bounds were missed, and which reports show it."""
    from lossscope.landscape.measures.catalogue import reports_of

    rows, densities, curves = len(found.rows), len(found.whole_densities), len(found.curves)
    added = [f"{rows} row{'s' * (rows > 1)}"] if rows else []
    added += [f"{densities} density table{'s' * (densities > 1)}"] if densities else []
    added += [f"{curves} curve{'s' * (curves > 1)}"] if curves else []
    them = "it" if rows + densities + curves == 1 else "them"
    measured = [(row["measure"], row["tensor"]) for row in (*found.rows, *found.tabled)]
    reports = " and ".join(f"`lossscope report {report} {found.run}`" for report in reports_of(measured))
    return f"{_missed(found)}Added {' and '.join(added)}; read {them} with {reports}"


def _missed(found: Probed) -> str:
    """Return advice on values that missed their requested precision, by what limits it."""
    from lossscope.landscape.measures.catalogue import limit_of
    from lossscope.landscape.measures.precision import unreachable

    limits = unreachable(found.rows)  # more products would not help these
    lines = [] if limits is None else [f"Bounds not met: {limits}.\n"]
    for limit, what in _NEXT_STEPS.items():
        missed = dict.fromkeys(
            r["measure"]
            for r in found.rows
            if not (r["converged"] or r.get("cause")) and limit_of(r["measure"]) == limit
        )
        lines += [f"{what.format(', '.join(missed))}.\n"] if missed else []
    return "".join(lines)


def measure_names(measures: str) -> list[str]:
    """Return the names in a comma-separated list.

    Raises:
        ConfigError: There is none.
    """
    from lossscope.landscape.errors import ConfigError

    names = [name.strip() for name in measures.split(",") if name.strip()]
    if not names:
        raise ConfigError("--measures names nothing: give names separated by commas, see `lossscope list measures`")
    return names


def solver_options(
    rel: str,
    max_products: int,
    seed: int,
    engine: Literal["lossscope", "pyhessian"],
    memory: str | None,
    spill: Path | None,
) -> SolverOptions:
    """Return the solver options, checked before anything is loaded.

    Raises:
        ConfigError: One of them is out of range.
        ProbeError: The memory is no number of bytes, or there is no such folder.
    """
    from lossscope.landscape.errors import ConfigError
    from lossscope.landscape.measures.options import SolverOptions
    from lossscope.landscape.training.config import shown
    from lossscope.probes.eigenvalues.memory_plan import byte_count
    from lossscope.probes.eigenvalues.row_store import check_spill_folder

    share = share_of(rel)
    for flag, value, least in (("--max-products", max_products, 1), ("--seed", seed, 0)):
        if not least <= value <= _MOST:
            raise ConfigError(f"{flag} {shown(value)} is out of range: need at least {least} and at most {_MOST}")
    size = None if memory is None else byte_count(memory)
    folder = None if spill is None else check_spill_folder(spill)
    return SolverOptions(share, share, max_products, seed, engine, size, folder)


def share_of(text: str) -> float:
    """Parse a share written as 1% or 0.01.

    Raises:
        ConfigError: The text is no number, or not between 0 and 1.
    """
    from lossscope.landscape.errors import ConfigError
    from lossscope.landscape.training.config import shown

    bare = text.strip().removesuffix("%")
    try:
        share = float(bare) / (100 if bare != text.strip() else 1)
    except ValueError:
        raise ConfigError(f"--rel {shown(text)} is no number: write 1% or 0.01") from None
    if not 0 < share < 1:
        raise ConfigError(
            f"--rel {text[:20]} is out of range: need more than 0 % and less than 100 %, such as 1% or 0.01"
        )
    return share


def _steps(given: list[str] | None) -> list[int] | Literal["last", "all"]:
    """Return the requested steps, given as several options or one list."""
    from lossscope.landscape.errors import ConfigError
    from lossscope.landscape.training.config import shown

    words = [word.strip() for one in given or [] for word in one.split(",") if word.strip()]
    if not words:
        return "last"
    if set(words) == {"all"}:
        return "all"
    for word in words:
        if word == "all":
            raise ConfigError(f"--checkpoint {','.join(words)}: all cannot be combined with steps")
        if not (word.isascii() and word.isdecimal()) or len(word) > _MOST_DIGITS:
            raise ConfigError(
                f"--checkpoint {shown(word)} is no step: give steps of at most {_MOST_DIGITS} digits, or all"
            )
    return [int(word) for word in words]
