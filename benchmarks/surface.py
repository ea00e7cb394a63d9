"""Cost of planes of the loss beside loss-landscapes and loss-landscape-3d: time of a cell, exact center, memory.

Run it with `python benchmarks/surface.py [--side 51] [--rounds 3] [--threads 1] [--only grid,memory,resnet]`, with the
extra `bench` installed. All arms of a table run in one process in interleaved rounds, in float32 on the same samples;
ratios are medians over the rounds of the ratios within one. Times are of the processor, which other programs disturb
less. Ours is `random_planes`, which draws at least two planes: times are those of a cell. The output is markdown for
`benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import numpy as np
import torch
from networks import RECIPES, Problem
from scale_networks import SHAPES, Images
from surface_rivals import RADIUS, rivals

from lossscope.landscape.surfaces.lines import CellOptions
from lossscope.landscape.surfaces.pictures import Plane
from lossscope.landscape.surfaces.plane import random_planes
from lossscope.landscape.surfaces.ways import Way, line_losses

JOBS = ("grid", "memory", "resnet")
AIMS = {"mlp": 5.0, "modadd": 1.5}  # times faster than each other library
SAMPLES, STEPS, PLANES = 1024, 300, 2
SIDES = (11, 51, 101)  # of the grids whose memory is compared
WAYS = {"ours": None, "ours, each alone": Way(0), "ours, in place": Way(1), "ours, blocks of 16": Way(16)}


@dataclass
class Timing:
    """Milliseconds of a cell in each round, the error of the center, and how the cells were evaluated."""

    name: str
    cells: list[float] = field(default_factory=list)
    center: float = float("nan")
    evaluated: str = ""


def ours(problem: Problem, side: int, way: Way | None) -> Plane:
    """Return two planes of ours."""
    return random_planes(problem.objective(), radius=RADIUS, points=side, planes=PLANES, cells=CellOptions(way=way))


def grids(problem: Problem, side: int, rounds: int, ways: Sequence[str] = tuple(WAYS)) -> list[Timing]:
    """Time all arms on one problem, a round of each after the other; a DataLoader in the first round only.

    Args:
        problem: The network and its batch.
        side: Cells along each side.
        rounds: Number of rounds.
        ways: Some of our own arms.
    """
    truth, middle, others = float(problem.loss().detach()), side // 2, rivals()
    timings = [Timing(name) for name in (*ways, *others)]
    for number in range(rounds):
        for one in timings:
            if "DataLoader" in one.name and number:
                continue
            begun = time.process_time()
            if one.name in WAYS:
                plane = ours(problem, side, WAYS[one.name])
                seconds, center = time.process_time() - begun, plane.losses[0, middle, middle]
                cells, truth_here, one.evaluated = PLANES * side**2, problem.objective().value(), plane.evaluated
            else:
                found = others[one.name](problem, side)
                seconds, center = time.process_time() - begun, found[middle, middle]
                cells, truth_here = side**2, truth
            one.cells.append(1e3 * seconds / cells)
            one.center = abs(float(center) - truth_here)
    return timings


def ratio(other: Timing, of: Timing) -> float:
    """Return the median over the rounds that both have of how much longer the other one took."""
    return median(a / b for a, b in zip(other.cells, of.cells, strict=False))


def print_grids(name: str, problem: Problem, timings: Sequence[Timing], side: int) -> None:
    """Print the table of a problem."""
    mine, aim = timings[0], AIMS[name]
    print(f"\n### {problem.name}, {problem.size:,} parameters, {len(problem.batch[1])} samples, {side} x {side}\n")
    print("| arm | processor ms a cell | times ours | error of the center | evaluated | aim |")
    print("|---|---|---|---|---|---|")
    for one in timings:
        own = one.name in WAYS
        factor = ratio(one, mine)
        verdict = "" if own else f"at least {aim:g}: {'met' if factor >= aim else '**missed**'}"
        words = [one.name, f"{median(one.cells):.3f}", f"{factor:.2f}", f"{one.center:.2g}", one.evaluated, verdict]
        print("| " + " | ".join(words) + " |")


def peak_growth(name: str, side: int) -> float:
    """Return the growth of the peak of resident memory of a process through a grid, in MiB, after a tiny one."""
    problem = RECIPES[name].problem(1, SAMPLES)
    ours(problem, 11, None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours(problem, side, None)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def print_memory(threads: int) -> None:
    """Print the memory of grids, each in a process of its own."""
    print("\n### Growth of peak memory, MiB, after a grid of 11 x 11 in the same process\n")
    print("| network | " + " | ".join(f"{side} x {side}" for side in SIDES) + " |")
    print("|---" * (len(SIDES) + 1) + "|")
    for name in AIMS:
        found = []
        for side in SIDES if name == "mlp" else SIDES[:2]:
            given = [sys.executable, __file__, "--peak", f"{name}:{side}", "--threads", str(threads)]
            found.append(subprocess.run(given, check=True, capture_output=True, text=True).stdout.strip())
        found += ["-"] * (len(SIDES) - len(found))
        print(f"| {RECIPES[name].name} | " + " | ".join(found) + " |", flush=True)


def print_resnet(images: int, side: int) -> None:
    """Print the cost of a plane of ResNet-18, predicted from two cells."""
    torch.manual_seed(0)
    SHAPES["surface"] = Images(images)
    problem = SHAPES["surface"].problem("ResNet-18")
    objective = problem.objective()
    center, theta = objective.value(), objective.parameters()
    begun = time.process_time()
    with torch.no_grad():
        problem.loss()
    forward = time.process_time() - begun
    begun = time.process_time()
    found = line_losses(objective, theta, theta, np.array([0.0, 0.1]), Way(0))
    cell = (time.process_time() - begun) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n### ResNet-18, {images} images of 32 x 32, {side} x {side}\n")
    print(
        f"{cell:.1f} s of the processor a cell, {cell / forward:.2f} of a forward pass, each alone (a loss of over "
        "50 ms is never tried otherwise); predicted from two cells for "
        f"{side} x {side}: {cell * side**2 / 60:.0f} min "
        f"of the processor a plane (not run). Peak of resident memory {peak:.1f} GiB. Untrained weights, BatchNorm in "
        f"eval mode; center exact: {found[0] == center}."
    )


def print_circumstances() -> None:
    """Print date, versions, processor and threads."""
    names = ("lossscope", "torch", "numpy", "loss-landscapes", "loss-landscape-3d")
    print(f"## Planes of the loss, {date.today().isoformat()}\n")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    where = f"CPU capability {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
    print(f"{', '.join(found)}; {where}; float32.", flush=True)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="Planes of the loss: ours beside other libraries.")
    parser.add_argument("--only", default=",".join(JOBS), help=f"some of {','.join(JOBS)}")
    parser.add_argument("--networks", default=",".join(AIMS), help=f"some of {','.join(AIMS)}")
    parser.add_argument("--side", type=int, default=51)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        name, _, side = given.peak.partition(":")
        print(f"{peak_growth(name, int(side)):.1f}")
        return
    jobs = given.only.split(",")
    print_circumstances()
    for name in given.networks.split(",") if "grid" in jobs else ():
        problem = RECIPES[name].problem(STEPS, SAMPLES)
        grids(problem, 5, 1)  # every arm once before it is timed
        ways = tuple(WAYS) if name == "mlp" else ("ours",)
        print_grids(name, problem, grids(problem, given.side, given.rounds, ways), given.side)
    if "memory" in jobs:
        print_memory(given.threads)
    if "resnet" in jobs:
        print_resnet(given.images, 21)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
