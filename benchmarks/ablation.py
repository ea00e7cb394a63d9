"""Throughput of an ablation: runs an hour, start-up per run, and the cost of the four numbers in gradients.

Run it with `python benchmarks/ablation.py`, and write what it prints to RESULTS.md.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import pandas as pd
import torch

from lossscope import __version__
from lossscope.landscape.experiments.ablation import Ablation, ablate
from lossscope.landscape.experiments.grid import Grid, grid_of
from lossscope.landscape.run import Run

ARMS = ("ars2-base", "ars2-sync", "adamw@rms")
PAIRS = {"relative to each weight": "adaptive_trace", "after balancing": "balanced_trace"}
RAW = "lambda_max"
AIM = 60  # gradients for the four numbers
FITTED = 0.1  # training loss below which arms are compared


def grid(folder: Path, steps: int, seeds: int) -> Grid:
    """Return the grid that is timed: three arms on digits, with the usual evaluations of an ablation."""
    arms = {arm: {"optimizer": arm} for arm in ARMS}
    return grid_of({"name": "timed", "out": str(folder), "steps": steps, "seeds": seeds, "arms": arms, "contrasts": {}})


def costs(runs: list[Run], fitted: float) -> pd.DataFrame:
    """Return products and gradients of each measure at each evaluation whose loss is below a bound.

    A gradient is the time of one gradient on the same data at the same evaluation. Measures that are taken together
    share their products, which each of their rows holds.
    """
    found = []
    for run in runs:
        rows = run.probes.assign(run=run.name)
        low = rows.loc[(rows["measure"] == "loss") & (rows["value"] < fitted), "step"]
        found.append(rows[rows["step"].isin(low) & rows["measure"].isin([*PAIRS.values(), RAW])])
    return pd.concat(found)[["run", "step", "measure", "products", "gradients"]]


def cost_table(runs: list[Run], fitted: float = FITTED) -> list[str]:
    """Return the lines of the table of costs, and the verdict on the aim."""
    rows = costs(runs, fitted)
    lines = ["| numbers | products | gradients |", "|---|---|---|"]
    for words, measure in {**PAIRS, "raw λ_max": RAW}.items():
        one = rows[rows["measure"] == measure]
        lines.append(f"| {words} | {one['products'].median():.0f} | {one['gradients'].median():.0f} |")
    four = rows[rows["measure"] != RAW].groupby(["run", "step"])["gradients"].sum()
    verdict = "met" if four.median() <= AIM else "**missed**"
    lines.append(f"| the four numbers | | {four.median():.0f} ({four.min():.0f} to {four.max():.0f}) |")
    return [*lines, "", f"Aim: the four numbers for at most {AIM} gradients at {len(four)} evaluations: {verdict}."]


def throughput_table(made: dict[str, Ablation], jobs: int) -> list[str]:
    """Return the lines of the table of runs an hour."""
    lines = [
        f"| {jobs} processes | runs | seconds | runs an hour | seconds of a run | of which outside its steps |",
        "|---|---|---|---|---|---|",
    ]
    for words, one in made.items():
        count = len(one.finished)
        inside = sum(run.manifest["overhead"]["wall_seconds"] for run in one.runs) / count
        each = sum(outcome.seconds for outcome in one.finished) / count
        rate = 3600 * count / one.seconds
        lines.append(f"| {words} | {count} | {one.seconds:.1f} | {rate:.0f} | {each:.2f} | {each - inside:.2f} |")
    return lines


def main(steps: int = 1000, seeds: int = 4, jobs: int = 2, fitted: float = FITTED) -> None:
    """Train the grid with and without evaluations, and print the two tables."""
    print(f"## Ablations, {date.today().isoformat()}\n\n`python benchmarks/ablation.py`\n")
    print(f"lossscope {__version__}, torch {torch.__version__}; digits-mlp, {steps} steps, one thread a run.\n")
    with tempfile.TemporaryDirectory() as folder:
        plan = grid(Path(folder), steps, seeds)
        measured = ablate(plan, jobs=jobs)
        bare = replace(plan, settings={**plan.settings, "evaluations": 0}, out=str(Path(folder) / "bare"))
        made = {"with 10 evaluations": measured, "without": ablate(bare, jobs=jobs)}
        print("\n".join([*throughput_table(made, jobs), "", *cost_table(measured.runs, fitted)]))


if __name__ == "__main__":
    main(*(int(one) for one in sys.argv[1:]))
