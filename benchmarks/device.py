"""Hessian products on one CUDA card: time against a gradient, memory, and the rounding of TF32.

Run it with `python benchmarks/device.py [--shapes 1M,11M,30M,124M,resnet18] [--device cuda] [--minutes 8]`. Shapes that
do not fit into the minutes are left out and named. The output is markdown for `benchmarks/RESULTS.md`. Without a card
it stops with a sentence; `--device cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Any

import torch
from networks import Problem
from scale_networks import SHAPES, in_words, problem

from lossscope.probes import Objective, hessian, measure_spectrum
from lossscope.probes.operators.timing import now

_ROUNDS = 5
_PRODUCTS = 30  # of the measurement of the largest eigenvalue


@dataclass(frozen=True)
class Row:
    """Numbers of one shape in one arithmetic."""

    shape: str
    arithmetic: str
    gradient: float  # seconds
    product: float  # seconds
    peak: int  # bytes beyond the parameters; 0 where the device does not tell
    rounding: float  # measured relative error of a product
    top: str  # largest eigenvalue with its bound
    remark: str = ""


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the median time of a call after one that is not timed."""
    times = []
    for _ in range(_ROUNDS + 1):
        begun = now(device)
        call()
        times.append(now(device) - begun)
    return median(times[1:])


def measured(found: Problem, name: str, arithmetic: str, model: Any = None) -> Row:
    """Return the row of a problem; `model` replaces its model, as a compiled one."""
    device, objective = found.device, found.objective()
    if model is not None:
        objective = Objective(model, objective.loss_fn, [found.batch])
    operator = hessian(objective)
    v = torch.randn(objective.size, generator=torch.Generator().manual_seed(0)).to(device)
    v /= v.norm()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with operator.cached():
        product = seconds(lambda: operator @ v, device)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    gradient = seconds(found.gradient, device)
    image = operator @ v
    error = operator.product_error(v[:, None], image[:, None])
    rounding = float(error.norms[0]) / float(image.double().norm()) if error is not None else float("nan")
    top = measure_spectrum(operator, top=1, quantities=("top",), rel=0.05, max_products=_PRODUCTS).top
    assert top is not None
    estimate = top.estimate()
    words = f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"
    return Row(name, arithmetic, gradient, product, peak, rounding, words, operator.method)


def rows(name: str, device: torch.device) -> list[Row]:
    """Return the rows of a shape: float32, and on a card TF32 and the compiled model."""
    found = problem(name).to(device)
    torch.set_float32_matmul_precision("highest")
    made = [measured(found, name, "float32")]
    if device.type != "cuda":
        return made
    torch.set_float32_matmul_precision("high")
    made.append(measured(found, name, "TF32"))
    torch.set_float32_matmul_precision("highest")
    try:
        made.append(measured(found, name, "float32, torch.compile", torch.compile(found.model)))
    except Exception as error:
        words = " ".join(str(error).split())[:80]
        made.append(Row(name, "float32, torch.compile", *[float("nan")] * 2, 0, float("nan"), "", words))
    return made


def main() -> None:
    """Print the table of the shapes that fit into the minutes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="1M,11M,resnet18,30M,124M")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    given = parser.parse_args()
    shapes = given.shapes.split(",")
    if unknown := [name for name in shapes if name not in SHAPES]:
        sys.exit(f"unknown shape {unknown[0]}: use some of {', '.join(SHAPES)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA card is here: run this where there is one, or try the script with --device cpu --shapes tiny")
    device, begun = torch.device(given.device), time.monotonic()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{date.today()}, torch {torch.__version__}, {card}\n")
    columns = ["network", "arithmetic", "gradient ms", "product ms", "gradients", "peak MB", "product error"]
    columns += ["lambda_max", "method"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for done, name in enumerate(shapes):
        if time.monotonic() - begun > 60 * given.minutes:
            print(f"\nLeft out, as {given.minutes:g} minutes were over: {', '.join(shapes[done:])}")
            break
        for row in rows(name, device):
            ratio = row.product / row.gradient
            print(
                f"| {row.shape}, {in_words(problem(name))} | {row.arithmetic} | {1e3 * row.gradient:.3g} | "
                f"{1e3 * row.product:.3g} | {ratio:.2f} | {row.peak / 1e6:.0f} | {row.rounding:.1e} | {row.top} | "
                f"{row.remark} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
