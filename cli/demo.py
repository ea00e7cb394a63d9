"""`lossscope demo`: train three arms with three seeds each on digits, print two tables and write one page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lossscope.cli.terminal import echo, text_width

__all__ = ["demo"]

_ARMS = ("ars2-base", "ars2-sync", "adamw@rms")
_SEEDS = (0, 1, 2)
_EVALUATIONS = 20
_MAX_JOBS = 4  # each process loads torch


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo's runs and its page.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each run.")] = 400,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing demo.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train ARS2-Neo base, its sync mode and a norm-matched AdamW on digits; print two tables, write a page.

    Example: lossscope demo --force
    """
    from lossscope.cli.progress import progress_bar
    from lossscope.landscape.errors import RunError
    from lossscope.landscape.training.config import TrainConfig
    from lossscope.landscape.training.parallel import train_all
    from lossscope.reports import overview, render
    from lossscope.reports.render.output import write_text
    from lossscope.reports.render.text import table_text

    page = out / "report.html"
    above = next((one for one in (out, *out.parents) if os.path.lexists(one)), Path())
    if not os.path.isdir(above):
        raise RunError(f"{above} is no folder; choose another folder with --out")
    if (out / "run.json").exists():
        raise RunError(f"{out} is a run itself; choose another folder for the demo with --out")
    if os.path.lexists(page) and not force:
        raise RunError(f"{page} exists; add --force to replace the demo, or choose another folder with --out")
    configs = [
        TrainConfig(
            workload="digits-mlp",
            optimizer=arm,
            name=f"{arm}-s{seed}",
            out=str(out),
            steps=steps,
            seed=seed,
            evaluations=_EVALUATIONS,
            threads=1,  # the networks are too small for more, and the result depends on the number of threads
        )
        for arm in _ARMS
        for seed in _SEEDS
    ]
    with progress_bar("demo") as progress:
        runs = train_all(configs, jobs=min(_MAX_JOBS, os.cpu_count() or 1), force=force, progress=progress)
    report = overview(runs)
    write_text(page, render(report, "html"), force=True)
    if as_json:
        echo(render(report, "json"), format="json")
        return
    for table in report.tables:
        echo(table_text(table, text_width()))
    echo(f"report with figures and findings: {page}")
    echo(f"training dynamics: `lossscope report dynamics {out}`")
