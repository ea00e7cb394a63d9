"""Step cost: ARS2-Neo against torch's Muon and AdamW, each mode against base, every optimizer against AdamW.

Run it with `python benchmarks/step.py [--quick] [--family]`; `--family` prints only the tables of all optimizers and of
the recorder, which takes minutes if bfloat16 products are slow. All arms of a table run in one process in interleaved
rounds, so that other load on the machine affects them equally; a row is the median over rounds, with its ratio
to the first row and the inverse. The output is markdown, ready for `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date

import torch
from step_family import family_table
from step_recording import recording_table
from step_timing import Arm, medians
from step_training import Training
from torch import Tensor, nn
from torch.optim import _muon

from lossscope.optimizer import ARS2Neo, names

QUICK, FAMILY = "--quick" in sys.argv, "--family" in sys.argv
ROUNDS, REPEATS = (8, 5) if QUICK else (60, 6)

# The one-layer transformer that groks addition mod 113 (`landscape/training/modular_addition.py`).
MODADD = [
    (128, 114),
    (128, 3),
    (4, 32, 128),
    (4, 32, 128),
    (4, 32, 128),
    (128, 128),
    (512, 128),
    (512,),
    (128, 512),
    (128,),
    (128, 114),
]
# Two convolutions with biases and group norm, and a linear head, for 8 by 8 digits.
DIGITS_CONV = [(16, 1, 3, 3), (16,), (16,), (16,), (32, 16, 3, 3), (32,), (32,), (32,), (10, 512), (10,)]


def print_table(title: str, arms: Sequence[Arm], rounds: int, repeats: int) -> None:
    """Print one markdown table, with ratios to the first arm and their inverses."""
    times = medians(arms, rounds, repeats)
    print(f"\n{title}\n\n| arm | ms a step | this / first | first / this |\n|---|---|---|---|")
    for arm, seconds in zip(arms, times, strict=True):
        print(f"| {arm.label} | {1e3 * seconds:.3f} | {seconds / times[0]:.2f} | {times[0] / seconds:.2f} |")


# -- the step alone -------------------------------------------------------------------------------------------


def parameters(shapes: Sequence[tuple[int, ...]], *, flat: bool) -> list[nn.Parameter]:
    """Return random parameters with random gradients; `flat` views each one with two or more dimensions as a matrix."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        w, g = torch.randn(2, *shape, generator=generator)
        if flat and len(shape) == 3:
            w, g = w.flatten(0, 1), g.flatten(0, 1)
        if flat and len(shape) > 3:
            w, g = w.flatten(1), g.flatten(1)
        parameter = nn.Parameter(w.contiguous())
        parameter.grad = g.contiguous()
        made.append(parameter)
    return made


def float32_newton_schulz(grad: Tensor, triple: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Run Muon's iteration without the cast to bfloat16 that torch hard-codes."""
    a, b, c = triple
    X = grad.T if grad.shape[0] > grad.shape[1] else grad
    X = X / X.norm().clamp(min=eps)
    for _ in range(steps):
        S = X @ X.T
        X = torch.addmm(X, torch.addmm(S, S, S, beta=b, alpha=c), X, beta=a)
    return X.T if grad.shape[0] > grad.shape[1] else X


@contextmanager
def muon_in_float32() -> Iterator[None]:
    """Make `torch.optim.Muon` multiply in float32 within the context."""
    original = _muon._zeropower_via_newtonschulz
    _muon._zeropower_via_newtonschulz = float32_newton_schulz
    try:
        yield
    finally:
        _muon._zeropower_via_newtonschulz = original


def muon(shapes: Sequence[tuple[int, ...]], *, float32: bool) -> Callable[[], None]:
    """Return a step of Muon for the matrices and AdamW for the rest."""
    made = parameters(shapes, flat=True)
    first = torch.optim.Muon([p for p in made if p.ndim == 2])
    second = torch.optim.AdamW([p for p in made if p.ndim < 2])

    def step() -> None:
        first.step()
        second.step()

    def step_in_float32() -> None:
        with muon_in_float32():
            step()

    return step_in_float32 if float32 else step


def step_arms(shapes: Sequence[tuple[int, ...]]) -> list[Arm]:
    """Return the arms, ARS2-Neo base first; it and Muon get the same two-dimensional matrices."""
    return [
        Arm("ARS2-Neo base", ARS2Neo(parameters(shapes, flat=True)).step),
        Arm("ARS2-Neo base, 3-D tensors by slice", ARS2Neo(parameters(shapes, flat=False)).step),
        Arm("ARS2-Neo base, bfloat16", ARS2Neo(parameters(shapes, flat=True), ns_dtype=torch.bfloat16).step),
        Arm("torch Muon + AdamW, float32", muon(shapes, float32=True)),
        Arm("torch Muon + AdamW, bfloat16 (as it is)", muon(shapes, float32=False)),
        Arm("torch AdamW", torch.optim.AdamW(parameters(shapes, flat=True)).step),
        Arm("torch AdamW, fused", torch.optim.AdamW(parameters(shapes, flat=True), fused=True).step),
    ]


# -- the step with its passes ---------------------------------------------------------------------------------


def training_arm(label: str, name: str, **options: object) -> Arm:
    """Return a training step on modadd-113, with forward and backward."""
    return Arm(label, Training.of(name, **options).step)


def mode_arms() -> list[Arm]:
    """Return an arm for each mode, with the passes it takes."""
    return [
        training_arm("base", "ars2-base"),
        training_arm("base, rho 0 in mode sync", "ars2-sync", rho=0.0),
        training_arm("sync", "ars2-sync"),
        training_arm("lazy, k 5", "ars2-lazy", k=5),
        training_arm("aga, k 10, lambda 0.1", "ars2-aga", k=10, aga_lambda=0.1),
        training_arm("aga, k 10, lambda 2", "ars2-aga", k=10),
        training_arm("AdamW", "adamw"),
    ]


# -- the machine ----------------------------------------------------------------------------------------------


def matmul_arms() -> list[Arm]:
    """Return arms that show whether bfloat16 products are faster on this machine."""
    A = torch.randn(256, 256)
    B = A.bfloat16()
    return [Arm("float32 256 x 256 product", lambda: A @ A), Arm("bfloat16 256 x 256 product", lambda: B @ B)]


def main() -> None:
    """Print all tables for one thread and for two."""
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"## Step cost, {date.today().isoformat()}\n")
    print(f"torch {torch.__version__}, CPU capability {capability}, {torch.get_num_threads()} threads by default;")
    print(f"medians of {ROUNDS} interleaved rounds of {REPEATS} steps (with passes 9 of 10, recording 2 of 600).")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"\n### {threads} thread{'s' if threads > 1 else ''}")
        if not FAMILY:
            print_table("Products", matmul_arms(), ROUNDS, 50)
            print_table("Step alone, modadd transformer", step_arms(MODADD), ROUNDS, REPEATS)
            print_table("Step alone, digits conv net", step_arms(DIGITS_CONV), ROUNDS, REPEATS)
            print_table("Step with its passes, modadd-113, batch 512", mode_arms(), 3 if QUICK else 9, 10)
        print("\nEvery optimizer, modadd-113, batch 512\n")
        print(family_table(names(), MODADD, rounds=2 if QUICK else 9, repeats=10))
    torch.set_num_threads(1)
    for name in ("ars2-base", "ars2-aga"):
        print(f"\nRecording {name} on modadd-113, batch 512, 1 thread\n")
        # 600 steps per round: a multiple of every preset's periods.
        print(recording_table(name, ("economy", "standard", "full"), rounds=1 if QUICK else 2, repeats=600))


if __name__ == "__main__":
    main()
