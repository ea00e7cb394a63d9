"""What curvature costs: our engine beside pyhessian, curvlinops and hessian-eigenthings, with the error of each.

Run it with `python benchmarks/curvature.py [--quick] [--only top,panel,tracking,product] [--networks mlp,wide]
[--threads 1] [--device cuda]`. Everything runs in one process in interleaved rounds with a seed each: times are
medians, ratios are of medians, errors are against converged references (`curvature_reference.py`). Rivals are called
as their users would, a fresh object each time, set-up counted as ours is. The output is markdown, ready for
`benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from statistics import median

import curvature_rivals as rivals
import torch
from curvature_jobs import (
    Result,
    Rounds,
    Track,
    cheapest_combination,
    our_panel,
    panel_arms,
    run,
    timed,
    top_arms,
    track,
    tracking_run,
)
from curvature_products import product_arms, time_products
from curvature_reference import Reference, SolverOptions, remembered, top_reference
from curvature_rivals import Combination
from curvature_tables import (
    Verdict,
    print_panel,
    print_products,
    print_references,
    print_table,
    print_top,
    print_tracks,
)
from networks import RECIPES, Problem

JOBS = ("top", "panel", "tracking", "product")
RIVALS = {
    "pyhessian": "pyhessian",
    "curvlinops": "curvlinops-for-pytorch",
    "hessian_eigenthings": "hessian-eigenthings",
}
# Optimizers whose runs are followed, with their learning rates.
RUNS = {"SGD, lr 0.1": (torch.optim.SGD, 0.1), "AdamW, lr 0.001": (torch.optim.AdamW, 1e-3)}
NOTES = """\
* pyhessian's `density` calls `torch.eig`, which torch has removed: here a symmetric eigh stands in, so that it can
  finish. It has no λ_min.
* curvlinops goes without its check of determinism, which takes two products. It raises on torch's group norm and sees
  it written out. Its settings in the panel are the cheapest that reach what is asked, found beforehand, not counted.
* hessian-eigenthings takes a fixed number of steps; how many suffice, its user would have to know.
* Measuring which of our methods is the cheapest is counted in each call of the panel and with the set-up of a product.
* On each network everything is called once before it is timed."""


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    networks: tuple[str, ...]
    samples: float  # share of each batch
    early: int  # steps of training at which lambda_max is taken too
    steps: int  # of training
    top: Rounds
    panel: Rounds
    effort: SolverOptions
    evaluations: int  # of a run that is followed
    seeds: int  # with which it is followed
    product_rounds: int
    product_repeats: int


FULL = Plan(tuple(RECIPES), 1.0, 50, 300, Rounds(5, 5), Rounds(2, 5, 45.0), SolverOptions(), 40, 3, 7, 3)
ROUGH = SolverOptions(5e-3, density_probes=4, density_steps=16)
QUICK = Plan(("mlp", "wide"), 0.25, 50, 300, Rounds(3, 3), Rounds(1, 1), ROUGH, 12, 1, 2, 3)


def measure(plan: Plan, jobs: Sequence[str], device: torch.device) -> list[Verdict]:
    """Do the jobs and print their tables; returns the aims with what was measured."""
    problems = [_problem(name, plan.steps, plan, device) for name in plan.networks]
    verdicts: list[Verdict] = []
    if {"top", "panel"} & set(jobs):
        early = [_problem(name, plan.early, plan, device) for name in plan.networks if "top" in jobs]
        late = [(problem, remembered(problem, plan.effort)) for problem in problems]
        both = [(problem, top_reference(problem)) for problem in early] + late
        print_references(both)
        if "top" in jobs:
            verdicts += print_top([_top(*pair, plan) for pair in both])
        if "panel" in jobs:
            verdicts += print_panel([_panel(*pair, plan) for pair in late])
    if "tracking" in jobs:
        verdicts += print_tracks([_followed(name, plan, device) for name in RUNS])
    if "product" in jobs:
        timings = []
        for problem in problems:
            arms = product_arms(problem)
            timings.append((problem, arms, time_products(problem, arms, plan.product_rounds, plan.product_repeats)))
        verdicts += print_products(timings)
    return verdicts


def _problem(name: str, steps: int, plan: Plan, device: torch.device) -> Problem:
    recipe = RECIPES[name]
    return recipe.problem(steps, round(recipe.samples * plan.samples)).to(device)


def _top(problem: Problem, truth: Reference, plan: Plan) -> Result:
    """The largest eigenvalue by all; a first call of each is thrown away."""
    arms = top_arms(problem)
    for arm in arms:
        arm.call(0)
    return Result(problem, truth, arms, run(problem, arms, plan.top))


def _panel(problem: Problem, truth: Reference, plan: Plan) -> Result:
    """The panel by all, curvlinops with settings that are as good as ours."""
    settings = _combination(problem, truth) if rivals.installed("curvlinops") else None
    arms = panel_arms(problem, truth, settings)
    return Result(problem, truth, arms, run(problem, arms, plan.panel))


def _combination(problem: Problem, truth: Reference) -> Combination:
    ours = (our_panel(problem, seed).density for seed in range(3))
    return cheapest_combination(problem, truth, median(truth.density_distance(one) for one in ours if one))


def _followed(name: str, plan: Plan, device: torch.device) -> tuple[str, list[Track], float]:
    """One run of the digits MLP, followed by all."""
    optimizer, lr = RUNS[name]
    problem = _problem("mlp", plan.steps, plan, device)
    tracks = track(problem, tracking_run(optimizer, plan.evaluations, lr), plan.seeds)
    gradient = median(timed(problem, problem.gradient) for _ in range(9))
    return f"digits MLP, {name}, {plan.evaluations} evaluations", tracks, gradient


def print_circumstances(device: torch.device) -> None:
    """Date, versions, processor, and how the rivals were helped."""
    print(f"## Curvature, {date.today().isoformat()}\n")
    where = f"CPU capability {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    print(f"torch {torch.__version__}, scipy {version('scipy')}, {where}; all in float32.\n")
    present = [f"{package} {version(package)}" for name, package in RIVALS.items() if rivals.installed(name)]
    missing = [package for name, package in RIVALS.items() if not rivals.installed(name)]
    print(f"* Rivals: {', '.join(present) or 'none'}.")
    if missing:
        print(f"* Not installed, so without rows: {', '.join(missing)}.")
    print(NOTES, flush=True)


def main() -> None:
    """Read the command line, measure, and print the aims."""
    parser = argparse.ArgumentParser(description="Curvature: our engine beside its rivals.")
    parser.add_argument("--quick", action="store_true", help="two networks, a quarter of the samples, few rounds")
    parser.add_argument("--only", default=",".join(JOBS), help=f"some of {','.join(JOBS)}")
    parser.add_argument("--networks", help=f"some of {','.join(RECIPES)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")  # torch.func.linearize to its own program
    device, begun = torch.device(given.device), time.perf_counter()
    print_circumstances(device)
    plan = QUICK if given.quick else FULL
    if given.networks:
        plan = replace(plan, networks=tuple(given.networks.split(",")))
    verdicts = measure(plan, given.only.split(","), device)
    title = "Aims: their time over ours, the median over the networks"
    print_table(title, "aim | measured | |", [verdict.row() for verdict in verdicts])
    print(f"\n{time.perf_counter() - begun:.0f} s in all, references included.")


if __name__ == "__main__":
    main()
