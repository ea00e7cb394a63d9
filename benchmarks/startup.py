"""Startup time of the command: whole processes, medians of eleven, beside an empty Python.

Run it with `python benchmarks/startup.py`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

ROUNDS = 11
LOSSSCOPE = str(Path(sys.executable).with_name("lossscope"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "lossscope --help": [LOSSSCOPE, "--help"],
    "lossscope report --help": [LOSSSCOPE, "report", "--help"],
    "lossscope report sharpness --help": [LOSSSCOPE, "report", "sharpness", "--help"],
}


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print one markdown table."""
    commands = dict(COMMANDS)
    if len(sys.argv) > 1:
        commands[f"lossscope report sharpness {Path(sys.argv[1]).name} (text)"] = [
            LOSSSCOPE,
            "report",
            "sharpness",
            sys.argv[1],
        ]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(seconds(command))
    print(f"## Start-up, {date.today().isoformat()}\n\n| command | seconds |\n|---|---|")
    for name, seen in times.items():
        print(f"| `{name}` | {median(seen):.3f} |")


if __name__ == "__main__":
    main()
