"""`lossscope demo`: train three arms with six paired seeds on digits, compare two of them, and write two pages."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.experiments.grid import Grid
    from lossscope.landscape.run import Run

__all__ = ["demo"]

ARMS: Final = ("ars2-base", "ars2-sync", "adamw@rms")
COMPARED: Final = ("ars2-sync", "ars2-base")
SEEDS: Final = 6  # the fewest that a verdict takes
# Shares of the run at which its sharpness is measured: around the losses where arms are compared. On so small a network
# an evaluation takes as long as a hundred steps.
EVALUATED: Final = (0.2, 0.6, 1.0)
_MOST_JOBS: Final = 4  # each process loads torch
_PAGES: Final = ("report.html", "verdict.html")


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo's runs and its pages.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each run.")] = 1000,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing demo.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train ARS2-Neo base, its sync mode and a norm-matched AdamW on digits, six seeds each; compare the first two.

    The runs are those of a small ablation, so that `compare` and `report` read them. Two pages are written: the
    comparison, and the report of all runs.

    Example: lossscope demo --force
    """
    from lossscope import __version__
    from lossscope.cli.progress import progress_bar
    from lossscope.landscape.experiments.ablation import ablate, default_jobs, prepared
    from lossscope.landscape.verdicts.judge import compare
    from lossscope.reports import overview, render
    from lossscope.reports.comparison.report import compare_report
    from lossscope.reports.render.output import write_text

    _check_place(out, force=force)
    grid = _grid(out, steps)
    jobs = min(_MOST_JOBS, default_jobs(prepared(grid, force=True), None))
    with progress_bar("demo") as progress:
        runs = ablate(grid, jobs=jobs, force=force, progress=progress).runs
    command = f"lossscope compare {' '.join(COMPARED)} --in {out}"
    document = compare_report(compare(*COMPARED, runs), runs, version=__version__, command=command)
    for page, text in zip(_PAGES, (render(overview(runs), "html"), render(document, "html")), strict=True):
        write_text(out / page, text, force=True)
    if as_json:
        echo(render(document, "json"), format="json")
        return
    echo(render(document, "text", width=text_width()))
    share, evaluations = 100 * _recorded(runs), len(grid.settings["evaluate_at"])
    echo(f"Recording took {share:.0f} % of the training time, with {evaluations} evaluations a run.")
    echo(f"page of this comparison: {out / _PAGES[1]}; of all runs, with figures: {out / _PAGES[0]}")
    echo(f"training dynamics: `lossscope report dynamics {out}`; another pair of arms: `{command}`")


def _check_place(out: Path, *, force: bool) -> None:
    """Raise RunError if the demo cannot be written to a folder."""
    from lossscope.landscape.errors import RunError

    above = next((one for one in (out, *out.parents) if os.path.lexists(one)), Path())
    if not os.path.isdir(above):
        raise RunError(f"{above} is no folder; choose another folder with --out")
    if (out / "run.json").exists():
        raise RunError(f"{out} is a run itself; choose another folder for the demo with --out")
    for page in _PAGES:
        if os.path.lexists(out / page) and not force:
            raise RunError(f"{out / page} exists; add --force to replace the demo, or choose another folder with --out")


def _grid(out: Path, steps: int) -> Grid:
    """Return the grid of the demo."""
    from lossscope.landscape.experiments.grid import grid_of

    arms = {arm: {"optimizer": arm} for arm in ARMS}
    place = out.absolute()
    return grid_of(
        {
            "name": place.name,
            "out": str(out.parent),
            "workload": "digits-mlp",
            "steps": steps,
            "seeds": SEEDS,
            "evaluate_at": sorted({math.ceil(share * steps) for share in EVALUATED}),
            "checkpoints": 2,
            "arms": arms,
            "contrasts": {},
        }
    )


def _recorded(runs: list[Run]) -> float:
    """Return the share of the runs' wall time that recording took."""
    spent = [run.manifest["overhead"] for run in runs]
    return float(sum(one["seconds"] for one in spent) / sum(one["wall_seconds"] for one in spent))
