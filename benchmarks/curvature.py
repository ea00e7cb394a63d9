"""Cost and error of curvature: our engine, pyhessian, curvlinops and hessian-eigenthings.

Run it with `python benchmarks/curvature.py [--quick] [--only top,panel,tracking,product] [--networks mlp,wide]
[--threads 1] [--device cuda]`. Everything runs in one process in interleaved rounds with a seed each: times are
medians, ratios are of medians, errors are relative to converged references (`curvature_reference.py`). The other
libraries are called as by a user, with a new object each time and the set-up included, as for ours. The output is
markdown for `benchmarks/RESULTS.md`.
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
# optimizers of the tracked runs, with their learning rates
RUNS = {"SGD, lr 0.1": (torch.optim.SGD, 0.1), "AdamW, lr 0.001": (torch.optim.AdamW, 1e-3)}
NOTES = """\
* pyhessian's `density` calls `torch.eig`, which torch has removed: it is replaced by a symmetric eigh here. pyhessian
  has no λ_min.
* curvlinops runs without its check of determinism, which takes two products. It raises on torch's group norm, which is
  written in elementary operations for it. Its settings in the panel are the cheapest that are accurate enough; the
  search for them is not counted.
* hessian-eigenthings takes a fixed number of steps; its user has to know how many suffice.
* On each network every call is made once before it is timed."""


@dataclass(frozen=True)
class Plan:
    """Size of the benchmark."""

    networks: tuple[str, ...]
    samples: float  # share of each batch
    early: int  # training step at which lambda_max is measured too
    steps: int  # training steps
    top: Rounds
    panel: Rounds
    effort: SolverOptions
    evaluations: int  # evaluations of a tracked run
    seeds: int  # number of tracking seeds
    product_rounds: int
    product_repeats: int


FULL = Plan(tuple(RECIPES), 1.0, 50, 300, Rounds(5, 5), Rounds(2, 5, 45.0), SolverOptions(), 40, 3, 7, 3)
ROUGH = SolverOptions(5e-3, density_probes=4, density_steps=16)
QUICK = Plan(("mlp", "wide"), 0.25, 50, 300, Rounds(3, 3), Rounds(1, 1), ROUGH, 12, 1, 2, 3)


def measure(plan: Plan, jobs: Sequence[str], device: torch.device) -> list[Verdict]:
    """Run the jobs and print their tables; return the targets with the measured values."""
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
    """Measure the largest eigenvalue by all arms, after one warm-up call each."""
    arms = top_arms(problem)
    for arm in arms:
        arm.call(0)
    return Result(problem, truth, arms, run(problem, arms, plan.top))


def _panel(problem: Problem, truth: Reference, plan: Plan) -> Result:
    """Measure the panel by all arms, curvlinops with settings as accurate as ours."""
    settings = _combination(problem, truth) if rivals.installed("curvlinops") else None
    arms = panel_arms(problem, truth, settings)
    return Result(problem, truth, arms, run(problem, arms, plan.panel))


def _combination(problem: Problem, truth: Reference) -> Combination:
    ours = (our_panel(problem, seed).density for seed in range(3))
    return cheapest_combination(problem, truth, median(truth.density_distance(one) for one in ours if one))


def _followed(name: str, plan: Plan, device: torch.device) -> tuple[str, list[Track], float]:
    """Track one run of the digits MLP by all arms."""
    optimizer, lr = RUNS[name]
    problem = _problem("mlp", plan.steps, plan, device)
    tracks = track(problem, tracking_run(optimizer, plan.evaluations, lr), plan.seeds)
    gradient = median(timed(problem, problem.gradient) for _ in range(9))
    return f"digits MLP, {name}, {plan.evaluations} evaluations", tracks, gradient


def print_circumstances(device: torch.device) -> None:
    """Print date, versions, processor, and the conditions of the other libraries."""
    print(f"## Curvature, {date.today().isoformat()}\n")
    where = f"CPU capability {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    print(f"torch {torch.__version__}, scipy {version('scipy')}, {where}; all in float32.\n")
    present = [f"{package} {version(package)}" for name, package in RIVALS.items() if rivals.installed(name)]
    missing = [package for name, package in RIVALS.items() if not rivals.installed(name)]
    print(f"* Other libraries: {', '.join(present) or 'none'}.")
    if missing:
        print(f"* Not installed, so without rows: {', '.join(missing)}.")
    print(NOTES, flush=True)


def main() -> None:
    """Parse the command line, measure, and print the targets."""
    parser = argparse.ArgumentParser(description="Curvature: our engine beside its rivals.")
    parser.add_argument("--quick", action="store_true", help="two networks, a quarter of the samples, few rounds")
    parser.add_argument("--only", default=",".join(JOBS), help=f"some of {','.join(JOBS)}")
    parser.add_argument("--networks", help=f"some of {','.join(RECIPES)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")  # by torch.func.linearize
    device, begun = torch.device(given.device), time.perf_counter()
    print_circumstances(device)
    plan = QUICK if given.quick else FULL
    if given.networks:
        plan = replace(plan, networks=tuple(given.networks.split(",")))
    verdicts = measure(plan, given.only.split(","), device)
    title = "Targets: their time relative to ours, the median over the networks"
    print_table(title, "aim | measured | |", [verdict.row() for verdict in verdicts])
    print(f"\n{time.perf_counter() - begun:.0f} s in all, including references.")


if __name__ == "__main__":
    main()
