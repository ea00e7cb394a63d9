"""Steps until modular addition is grokked: test accuracy of 99 % on (x + y) mod 113.

Run it with `python benchmarks/grokking.py [SEED ...]`; seed 42 by default. One markdown row a seed. The
settings are those of the public ARS2-Neo run: aga, rho 0.1, k 10, lambda 0.1, lr 1e-3, betas (0.9, 0.98),
weight decay 1.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import date

import torch

from lossscope.landscape import TrainConfig, first_step, train

OPTIONS = {"rho": 0.1, "k": 10, "aga_lambda": 0.1, "betas": [0.9, 0.98], "weight_decay": 1.0}


def main() -> None:
    """Train with each seed until the test accuracy is there and print when it was."""
    print(f"## Grokking modadd-113, {date.today().isoformat()}\n")
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, threads: {threads}; test accuracy is measured every 8 steps, an epoch\n")
    print("| seed | steps to 50 % | 90 % | 99 % | second passes | seconds |\n|---|---|---|---|---|---|")
    for seed in [int(word) for word in sys.argv[1:]] or [42]:
        with tempfile.TemporaryDirectory() as out:
            settings = {
                "workload": "modadd-113",
                "optimizer": "ars2-aga",
                "out": out,
                "seed": seed,
                "lr": 1e-3,
                "steps": 3000,
                "until_accuracy": 0.99,
                "evaluations": 0,
                "preset": "economy",
                "options": OPTIONS,
            }
            start = time.perf_counter()
            run = train(TrainConfig.of(settings))
            seconds = time.perf_counter() - start
            reached = [first_step(run, "test_accuracy", level) for level in (0.5, 0.9, 0.99)]
            second = int(run.steps["synced"].sum())
        print(f"| {seed} | {' | '.join(str(step) for step in reached)} | {second} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
