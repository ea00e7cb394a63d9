"""Study of the founding claims: train the grids beside this file, and write the verdicts.

Usage, from the top of the repository: .venv/bin/python benchmarks/studies/founding/run.py [GRID ...]

Grids are digits, conv, prose and modadd; without names only those whose runs are in runs/founding-* are judged. What is
there is kept, so that a study that was stopped goes on. `verdicts.json`, `verdicts.md` and `verdicts.html` are written
beside this file.

Grids of the founding experiments in full are wikitext and cifar: they need --data FOLDER with the files of the data
set, and a GPU (--device cuda) unless there are days.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

import torch

from lossscope import __version__
from lossscope.cli.progress import progress_bar
from lossscope.errors import LossscopeError
from lossscope.landscape.experiments.ablation import ablate
from lossscope.landscape.experiments.grid import Grid, read_grid
from lossscope.landscape.experiments.judgement import judged
from lossscope.landscape.run import Run, open_runs
from lossscope.landscape.verdicts.claims import founding_claims
from lossscope.landscape.verdicts.judge import judge
from lossscope.reports import render
from lossscope.reports.comparison.contrasts import contrasts_report
from lossscope.reports.comparison.report import check_report

HERE = Path(__file__).parent
GRIDS = ("digits", "conv", "prose", "modadd", "wikitext", "cifar")


def main(names: list[str], given: dict[str, str]) -> None:
    """Train the grids of these names, then judge all that is there."""
    grids = {name: read_grid(HERE / f"{name}.toml", given if name in names else None) for name in GRIDS}
    for name in names:
        with progress_bar(name) as progress:
            made = ablate(grids[name], progress=progress)
        print(f"{name}: {len(made.finished)} of {len(made.outcomes)} runs finished in {made.seconds:.0f} s")
        for one in made.lost:
            print(f"  {one.name} {one.status}: {one.why}")
    runs = {name: open_runs(grid.folder) for name, grid in grids.items() if grid.folder.is_dir()}
    if not runs:
        sys.exit(f"no runs of this study in runs: name a grid to train, one of {', '.join(GRIDS)}")
    write(runs, grids)


def write(runs: dict[str, list[Run]], grids: dict[str, Grid]) -> None:
    """Write the verdicts on the claims, and the table of contrasts of each grid."""
    every = [run for some in runs.values() for run in some]
    claims = founding_claims()
    verdicts = [judge(claim, every) for claim in claims.claims]
    command = "python benchmarks/studies/founding/run.py " + " ".join(runs)
    document = check_report(verdicts, every, version=__version__, claims=claims, commands=[command])
    for format, ending in (("json", "json"), ("html", "html")):
        (HERE / f"verdicts.{ending}").write_text(render(document, format))
    parts = [
        "# The founding claims of ARS2-Neo",
        f"Written by `{command}`, {date.today()}, lossscope {__version__}, torch {torch.__version__}. "
        "Times are not judged on a busy machine. What each line rests on is in `verdicts.html` and `verdicts.json`.",
        f"```\n{render(document, 'text', width=120).rstrip()}\n```",
    ]
    for name, some in runs.items():
        table = judged(grids[name], some) if grids[name].contrasts else None
        if table is not None:
            text = render(contrasts_report(table, some, version=__version__, title=name), "text", width=120)
            parts += [f"## Contrasts: {name}", f"```\n{text.rstrip()}\n```"]
    (HERE / "verdicts.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train grids of the study, then judge all that is there.")
    parser.add_argument("names", nargs="*", choices=[*GRIDS, []], metavar="GRID")
    parser.add_argument("--data", help="folder with the files of the data set, for one of wikitext and cifar")
    parser.add_argument("--device", help="such as cuda")
    asked = vars(parser.parse_args())
    try:
        main(asked.pop("names"), {key: value for key, value in asked.items() if value is not None})
    except LossscopeError as error:
        sys.exit(str(error))
