"""Curvature of networks that people train: language models of 1M to 124M parameters, ResNet-18.

Run it with `python benchmarks/scale.py [--shapes 1M,11M] [--arms products,residual,bound] [--threads 1,2]
[--references 1M,11M] [--limit 600] [--room 12]`. Every arm runs in a process of its own, so that its peak of resident
memory is its own; one that raises, asks for more than `--room` GiB or needs more than `--limit` seconds is printed as
such. Errors are relative to references in float64 that have converged (`scale_arms.reference`). The output is markdown
for `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import curvature_rivals as rivals
import torch
from curvature_tables import Verdict, print_table
from scale_arms import ARMS, BUDGETED, BUDGETS, MEMORY, REL, TRACE_REL, Outcome
from scale_networks import SHAPES

_WRONG = 2 * REL  # relative error of the largest eigenvalue that is called wrong
_SMALL = ("tiny", "1M")  # shapes beside which what a process loads is not small, so that copies say nothing
NOTES = f"""\
* `residual` and `bound`: λ_max to a residual or a bound of {REL:.0%} and the trace to {TRACE_REL:.0%}, in one call.
  `panel`: five eigenvalues, the smallest, trace and density. `economy`, `standard`: one evaluation of the recorder,
  with `memory=` {MEMORY["economy"]} and {MEMORY["standard"]} copies of the parameters.
* Other libraries run with torch's attention in elementary operations, as they raise on the fused kernel. pyhessian's
  `density` calls `torch.eig`, which torch has removed: it is replaced by a symmetric eigh.
* A gradient is one of torch's own. Growth is the peak of resident memory beyond that of a gradient, in copies of the
  parameters."""


def outcomes(name: str, arm: str, threads: int, given: argparse.Namespace) -> list[Outcome]:
    """Run an arm in a process of its own."""
    script = Path(__file__).with_name("scale_arms.py")
    command = [sys.executable, str(script), name, arm, str(threads), str(given.seed), str(given.room * 2**30)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    limit = given.limit if arm != "reference" else None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return [Outcome(arm, remark=f"not finished in {given.limit:g} s")]
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.splitlines() or [""])[-1]
        return [Outcome(arm, remark=f"ended with code {done.returncode}: {last[:100]}")]
    return [Outcome(**one) for one in json.loads(lines[-1])]


def copies(found: Outcome) -> float:
    """Return the growth of resident memory in copies of the parameters; nan for an arm that failed."""
    return found.growth / (4 * found.size) if found.size else math.nan


def row(found: Outcome, name: str, threads: int, truth: Outcome | None) -> list[str]:
    """Return the row of an arm."""
    top, trace = (math.nan, math.nan) if truth is None else (found.top / truth.top - 1, found.trace / truth.trace - 1)
    remark = "wrong" if abs(top) > _WRONG else found.remark
    return [
        name,
        str(threads),
        found.label,
        _number(found.products, ".0f"),
        _number(found.seconds / found.gradient, ".1f"),
        _number(found.seconds, ".1f"),
        _number(found.peak / 2**30, ".2f"),
        _number(copies(found), ".1f"),
        _number(found.top, ".4g"),
        _number(100 * abs(top), ".2g"),
        _number(100 * abs(trace), ".2g"),
        remark,
    ]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def products_table(found: dict[tuple[str, int], list[Outcome]]) -> None:
    """Print the times of one product."""
    rows = [
        [name, one.problem, str(threads), one.label, _number(one.seconds / one.gradient, ".2f"), one.remark]
        for (name, threads), some in found.items()
        for one in some
    ]
    if rows:
        print_table("### One product", "shape | problem | threads | product | gradients | remark", rows)


def budgets_table(given: argparse.Namespace) -> None:
    """Print what measurements take, over what `budget` predicts."""
    wanted = [arm for arm in given.arms.split(",") if arm in BUDGETS]
    threads = int(given.threads.split(",")[0])
    rows = [
        [name, one.label, _number(one.seconds, ".1f"), _number(copies(one), ".1f"), one.remark]
        for name in given.shapes.split(",")
        for arm in wanted
        for one in outcomes(name, arm, threads, given)
    ]
    if rows:
        head = "shape | basis | seconds | growth, copies | measured over predicted"
        print_table(f"### Budgets of the top eigenvalue and the trace from {BUDGETED} products", head, rows)


def verdicts(found: dict[tuple[str, str, int], Outcome]) -> list[Verdict]:
    """Return the aims for the shapes that were run, on the first number of threads."""
    first = {(name, arm): one for (name, arm, _), one in reversed(found.items())}

    def aim(words: str, of: Callable[[], float], met: Callable[[float], bool]) -> list[Verdict]:
        try:
            value = of()
        except KeyError:
            return []
        return [Verdict(words, _number(value, ".3g"), met(value))]

    def gradients(name: str, arm: str) -> float:
        return first[name, arm].seconds / first[name, arm].gradient

    def over_ours() -> float:
        return gradients("11M", "pyhessian-panel") / gradients("11M", "panel")  # the machine's speed may change between

    return [
        *aim(
            "124M: residual and trace in at most 60 gradients", lambda: gradients("124M", "residual"), lambda x: x <= 60
        ),
        *aim("124M: bound and trace in at most 110 gradients", lambda: gradients("124M", "bound"), lambda x: x <= 110),
        *aim("124M: at most 6 GiB", lambda: first["124M", "bound"].peak / 2**30, lambda x: x <= 6),
        *aim("11M: pyhessian's panel at least 3x our time", over_ours, lambda x: x >= 3),
        *(
            verdict
            for name in dict.fromkeys(name for name, _ in first if name not in _SMALL)
            for arm, most in (("economy", 10), ("standard", 40))
            for verdict in aim(
                f"{name}: {arm} evaluation grows by at most {most} copies",
                lambda name=name, arm=arm: copies(first[name, arm]),
                lambda x, most=most: x <= most,
            )
        ),
    ]


def print_circumstances(given: argparse.Namespace) -> None:
    """Print date, versions and conditions."""
    present = [f"{name} {version(package)}" for name, package in _PACKAGES.items() if rivals.installed(name)]
    print(f"## Scale, {date.today().isoformat()}\n\n`python benchmarks/scale.py {' '.join(sys.argv[1:])}`\n")
    print(f"torch {torch.__version__}, {', '.join(present) or 'no other library'}; float32.\n\n{NOTES}", flush=True)


_PACKAGES = {
    "pyhessian": "pyhessian",
    "curvlinops": "curvlinops-for-pytorch",
    "hessian_eigenthings": "hessian-eigenthings",
}


def measure(given: argparse.Namespace) -> None:
    """Run all arms and print their tables."""
    shapes, arms = given.shapes.split(","), given.arms.split(",")
    threads = [int(one) for one in given.threads.split(",")]
    truths = {name: outcomes(name, "reference", 1, given)[0] for name in given.references.split(",") if name in shapes}
    for name, truth in truths.items():
        error = 100 * truth.trace_error / truth.trace
        print(
            f"\nReference of {name} ({truth.problem}): λ_max {truth.top:.4g}, trace {truth.trace:.4g} to {error:.1g} %."
        )
    some = {(n, t): outcomes(n, "products", t, given) for n in shapes for t in threads if "products" in arms}
    products_table(some)
    budgets_table(given)
    wanted = [arm for arm in arms if arm in ARMS and (not ARMS[arm][0] or rivals.installed(ARMS[arm][0]))]
    found: dict[tuple[str, str, int], Outcome] = {}

    def rows() -> Iterator[list[str]]:
        for key in ((name, arm, count) for name in shapes for count in threads for arm in wanted):
            found[key] = outcomes(*key, given)[0]
            yield row(found[key], key[0], key[2], truths.get(key[0]))

    head = "shape | threads | arm | products | gradients | seconds | peak GiB | growth, copies | λ_max"
    if wanted:
        print_table("### Values", f"{head} | its error % | error of the trace % | remark", rows())
    if reached := verdicts(found):
        print_table("### Aims", "aim | measured | ", [one.row() for one in reached])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="Curvature at scale: our engine beside its rivals.")
    parser.add_argument("--shapes", default="1M,11M,30M,124M,resnet18", help=f"some of {','.join(SHAPES)}")
    parser.add_argument("--arms", default=f"products,{','.join((*BUDGETS, *ARMS))}", help="some of these")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--references", default="1M,11M", help="shapes with a reference in float64")
    parser.add_argument("--limit", type=float, default=600, help="seconds of an arm")
    parser.add_argument("--room", type=float, default=12, help="GiB that an arm may ask for")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    print_circumstances(given)
    measure(given)


if __name__ == "__main__":
    main()
