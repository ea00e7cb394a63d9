"""Reports of long runs and of many runs: time and peak memory of whole processes, and their growth with the steps.

Run it with `python benchmarks/report.py [--quick]`. It writes the runs of `big_logs.py` into a temporary folder (0.6
GB; with `--quick` runs of at most 10^5 steps and 100 short runs) and starts `lossscope` anew for each number: the best
of three. The output is markdown, ready for `benchmarks/RESULTS.md`; an aim that was missed is marked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from big_logs import big_run, small_runs

QUICK = "--quick" in sys.argv
ROUNDS = 1 if QUICK else 3
STEPS = (10_000, 100_000) if QUICK else (10_000, 100_000, 1_000_000)
MANY, LISTED = (20, 100) if QUICK else (100, 1000)
KINDS = ("overview", "sharpness", "entropy", "flatness", "dynamics", "all")
MOST_SECONDS, MOST_GIB, MOST_LINES, MOST_LISTING = 10.0, 1.0, 60, 2.0
PACKAGES = ("lossscope", "pyarrow", "pandas", "numpy")


@dataclass(frozen=True)
class Cost:
    """Time, memory and lines of a process."""

    seconds: float  # wall time
    processor: float  # seconds of processor time, user and system
    gib: float  # peak of resident memory
    lines: int


def cost(arguments: Sequence[str]) -> Cost:
    """Return the least of the times and memories of a few processes."""
    found = [_once(arguments) for _ in range(ROUNDS)]
    numbers = zip(*((one.seconds, one.processor, one.gib) for one in found), strict=True)
    return Cost(*map(min, numbers), found[0].lines)


def _once(arguments: Sequence[str]) -> Cost:
    """Run the command once."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([sys.executable, "-m", "lossscope.cli.main", *arguments], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begun
        if process.returncode:
            raise SystemExit(f"lossscope {' '.join(arguments)} ended with {process.returncode}")
        out.seek(0)
        lines = out.read().count(b"\n")
    scale = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux kibibytes
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / scale, lines)


def mark(good: bool) -> str:
    """Return whether an aim was met."""
    return "met" if good else "**missed**"


def print_long(folder: Path) -> None:
    """Print the reports of runs of growing length."""
    aim = f"at most {MOST_SECONDS:g} s and {MOST_GIB:g} GiB"
    print(f"\n### One run, norms of 20 tensors at every tenth step ({aim} at 10^6 steps)\n")
    head = " | ".join(f"{steps:,} steps: s (processor s), GiB" for steps in STEPS)
    print(f"| report | {head} | aim |\n|---|{'---|' * len(STEPS)}---|")
    for kind in KINDS:
        found = [cost(["report", kind, str(folder / f"run-{steps}")]) for steps in STEPS]
        cells = " | ".join(f"{one.seconds:.1f} ({one.processor:.1f}), {one.gib:.2f}" for one in found)
        last = found[-1]
        good = last.seconds <= MOST_SECONDS and last.gib <= MOST_GIB
        print(f"| `{kind}` | {cells} | {'not measured' if QUICK else mark(good)} |", flush=True)


def print_many(folder: Path) -> None:
    """Print the reports of many runs, and the list of more."""
    print("\n### Many runs of 200 steps in ten arms\n")
    print("| command | runs | s (processor s) | GiB | lines | aim |\n|---|---|---|---|---|---|")
    for kind in KINDS:
        one = cost(["report", kind, str(folder / "many")])
        print(
            f"| `report {kind}` | {MANY} | {one.seconds:.1f} ({one.processor:.1f}) | {one.gib:.2f} | {one.lines} "
            f"| below {MOST_LINES} lines: {mark(one.lines < MOST_LINES)} |",
            flush=True,
        )
    one = cost(["runs", str(folder / "listed")])
    print(
        f"| `runs` | {LISTED} | {one.seconds:.1f} ({one.processor:.1f}) | {one.gib:.2f} | {one.lines} "
        f"| below {MOST_LISTING:g} s: {'not measured' if QUICK else mark(one.seconds < MOST_LISTING)} |"
    )


def main() -> None:
    """Print the tables."""
    print(f"## Reports of long and of many runs, {date.today().isoformat()}\n\n`python benchmarks/report.py`\n")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES) + f"; {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # In processes of their own: a child's peak of memory begins with that of its parent.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for steps in STEPS:
                pool.submit(big_run, folder / f"run-{steps}", steps).result()
            pool.submit(small_runs, folder / "many", MANY).result()
            pool.submit(small_runs, folder / "listed", LISTED).result()
        print_long(folder)
        print_many(folder)


if __name__ == "__main__":
    main()
