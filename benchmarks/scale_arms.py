"""Arms of the scale benchmark, each run in a process of its own: seconds, products, peak memory, and the values found.

`python benchmarks/scale_arms.py SHAPE ARM THREADS SEED ROOM` runs one arm and prints its outcome as a line of JSON.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import curvature_rivals as rivals
import torch
from curvature_reference import kept_product, largest_eigenvalue
from curvature_rivals import Found
from networks import Problem
from scale_networks import in_words, problem
from torch.nn.attention import SDPBackend, sdpa_kernel

from lossscope.landscape.recording.recorder import Recorder
from lossscope.probes import budget, hessian, measure_spectrum

REL, TRACE_REL = 0.05, 0.15  # accuracy that is asked for
MEMORY = {"economy": 6, "standard": 25}  # memory= of an evaluation, in copies of the parameters
BUDGETS = {"budget": None, "budget-24": 24, "budget-8": 8}  # memory= of a measurement, in copies of the parameters
BUDGETED = 24  # products of it
_GRADIENTS = 7  # gradients timed before an arm and after it
_PRODUCTS = 5
_SAMPLES = 200  # of the trace of a reference
Call = Callable[[Problem, int], Found]


@dataclass(frozen=True)
class Outcome:
    """Outcome of an arm; nan where it has no such number."""

    label: str
    problem: str = ""  # in words
    size: int = 0  # number of parameters
    products: float = math.nan
    seconds: float = math.nan
    gradient: float = math.nan  # seconds of one
    peak: float = math.nan  # bytes
    growth: float = math.nan  # bytes beyond the peak of one gradient
    top: float = math.nan
    trace: float = math.nan
    trace_error: float = math.nan  # standard error; of a reference
    remark: str = ""


# -- arms -----------------------------------------------------------------------------------------------------


def ours(problem: Problem, seed: int, *, proof: bool) -> Found:
    """Measure the largest eigenvalue and the trace, with the proof that none lies further out or without."""
    operator = hessian(problem.objective())
    names = ("top", "trace")
    found = measure_spectrum(
        operator, top=1, rel=REL, trace_rel=TRACE_REL, max_products=400, quantities=names, seed=seed, proof=proof
    )
    assert found.top is not None
    assert found.trace is not None
    return Found(found.products, found.top.values.tolist(), trace=found.trace.value, unmet=found.unmet)


def our_panel(problem: Problem, seed: int) -> Found:
    """Measure five eigenvalues, the smallest one, trace and density in one call."""
    operator, names = hessian(problem.objective()), ("top", "bottom", "trace", "density")
    found = measure_spectrum(
        operator, top=5, rel=REL, trace_rel=TRACE_REL, max_products=400, quantities=names, seed=seed
    )
    assert found.top is not None
    assert found.trace is not None
    return Found(found.products, found.top.values.tolist(), trace=found.trace.value, unmet=found.unmet)


def evaluation(problem: Problem, seed: int, *, preset: str) -> Found:
    """Take one evaluation of a recorder."""
    stepping = torch.optim.SGD(problem.parameters, 1e-6)  # so that values are still those of the reference
    with TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        memory = MEMORY[preset] * problem.size * 4
        settings = {"steps": 1, "evaluate_at": [1], "checkpoints": 0, "overhead": 1.0, "memory": memory}
        with Recorder(place, problem.model, stepping, problem.objective(), preset, **settings) as recorder:
            loss = problem.loss()
            loss.backward()
            stepping.step()
            stepping.zero_grad()
            recorder.step(float(loss.detach()))
        rows = _estimates(place)
    value = {row["measure"]: row["value"] for row in rows if not row["tensor"]}
    return Found(0, [value.get("lambda_max", math.nan)], trace=value.get("trace", math.nan))


def _estimates(place: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's probes."""
    from lossscope.landscape import Run

    return list(Run.open(place).probes.to_dict("records"))


def theirs_pyhessian(problem: Problem, seed: int) -> Found:
    """Compute the largest eigenvalue and the trace by pyhessian's defaults."""
    with rivals.pyhessian(problem, seed) as library:
        values, _ = library.hessian.eigenvalues()
        trace = library.hessian.trace()
        return Found(library.products, values, trace=sum(trace) / len(trace))


def theirs_eigenthings(problem: Problem, seed: int) -> Found:
    """Compute the largest eigenvalue by 16 Lanczos steps and the trace from 16 vectors."""
    from hessian_eigenthings import hutchinson, lanczos

    operator = rivals.eigenthings_operator(problem)
    top = lanczos(operator, k=1, max_iter=16, which="LA", seed=seed).eigenvalues
    trace = hutchinson(operator, num_samples=16, seed=seed).estimate
    return Found(operator.products, [float(top[0])], trace=float(trace))


def theirs_curvlinops(problem: Problem, seed: int) -> Found:
    """Compute the largest eigenvalue by eigsh and the trace by xtrace from 16 products."""
    operator = rivals.curvlinops_operator(problem)
    top = rivals.eigsh_ends(operator, seed, "LA", 1, REL)
    return Found(operator.products, top.tolist(), trace=rivals.curvlinops_trace(operator, seed, 16))


ARMS: dict[str, tuple[str, Call]] = {  # needs this library ("" for none)
    "residual": ("", partial(ours, proof=False)),
    "bound": ("", partial(ours, proof=True)),
    "panel": ("", our_panel),
    "economy": ("", partial(evaluation, preset="economy")),
    "standard": ("", partial(evaluation, preset="standard")),
    "pyhessian": ("pyhessian", theirs_pyhessian),
    "pyhessian-panel": ("pyhessian", rivals.pyhessian_panel),
    "eigenthings": ("hessian_eigenthings", theirs_eigenthings),
    "curvlinops": ("curvlinops", theirs_curvlinops),
}


# -- one arm in this process ----------------------------------------------------------------------------------


def run(name: str, arm: str, seed: int) -> Outcome:
    """Run one arm on one shape in this process."""
    found = problem(name)
    facts = {"label": arm, "problem": in_words(found), "size": found.size}
    forget_peak()
    gradients = _gradient_times(found)
    before = peak_bytes()
    begun = time.perf_counter()
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention of torch has no second derivative
        values = ARMS[arm][1](found, seed)
    seconds = time.perf_counter() - begun
    peak = peak_bytes()
    gradient = median([*gradients, *_gradient_times(found)])
    top = max(values.top) if values.top else math.nan
    remark = f"not reached: {', '.join(values.unmet)}" if values.unmet else ""
    products = values.products or math.nan
    return Outcome(
        **facts,
        products=products,
        seconds=seconds,
        gradient=gradient,
        peak=peak,
        growth=peak - before,
        top=top,
        trace=values.trace,
        remark=remark,
    )


def reference(name: str) -> Outcome:
    """Compute the largest eigenvalue in float64 until it has converged, and the trace from many random signs."""
    found = problem(name)
    with sdpa_kernel(SDPBackend.MATH):
        top, product = largest_eigenvalue(found), kept_product(found)
        generator = torch.Generator().manual_seed(20_26)
        forms = []
        for _ in range(_SAMPLES):
            signs = torch.randint(2, (found.size,), generator=generator).double() * 2 - 1
            forms.append(float(torch.dot(signs, product(signs))))
    values = torch.tensor(forms, dtype=torch.float64)
    error = float(values.std()) / _SAMPLES**0.5
    return Outcome("reference", in_words(found), found.size, top=top, trace=float(values.mean()), trace_error=error)


def products(name: str) -> list[Outcome]:
    """Time one product of each library beside gradients, interleaved in this process."""
    from curvature_products import ProductArm, product_arms, time_products

    found = problem(name)
    arms = [arm for arm in product_arms(found) if not arm.candidate]
    arms.insert(1, ProductArm("lossscope, no graph kept", partial(_uncached, found)))
    arms.insert(2, ProductArm("two backward passes of torch alone", partial(_bare, found)))
    with sdpa_kernel(SDPBackend.MATH):
        time_products(found, arms, 1, _PRODUCTS)
    gradient, words = median(_gradient_times(found)), in_words(found)
    return [
        Outcome(arm.label, words, found.size, remark=arm.refusal)
        if arm.refusal
        else Outcome(arm.label, words, found.size, 1, arm.product, gradient)
        for arm in arms
    ]


def budgets(name: str, copies: int | None) -> list[Outcome]:
    """Compare the prediction of `budget` with what a measurement that takes all its products takes."""
    found, begun = problem(name), resident_bytes()
    memory = None if copies is None else copies * 4 * found.size
    settings = {"top": 1, "max_products": BUDGETED, "memory": memory}
    with sdpa_kernel(SDPBackend.MATH):
        forget_peak()
        predicted = budget(found.objective(), ("top", "trace"), **settings)
        largest = peak_bytes()
        forget_peak()  # as `budget` does
        start = time.perf_counter()
        measure_spectrum(
            hessian(found.objective()), quantities=("top", "trace"), rel=1e-9, trace_rel=1e-9, seed=0, **settings
        )
        seconds = time.perf_counter() - start
    grown = max(largest, peak_bytes()) - begun
    words = f"{grown / predicted.bytes:.2f} of the bytes, {seconds / predicted.seconds:.2f} of the time"
    return [
        Outcome(
            predicted.basis,
            in_words(found),
            found.size,
            predicted.products,
            seconds,
            predicted.price.gradient_seconds,
            grown + begun,
            grown,
            remark=words,
        )
    ]


def _uncached(problem: Problem) -> Any:
    """Return a context with a product that rebuilds its graph."""
    from contextlib import contextmanager

    @contextmanager
    def opened() -> Any:
        operator, v = hessian(problem.objective(), memory=0), torch.randn(problem.size)
        with operator.cached():
            yield lambda: len([operator @ v])

    return opened()


def _bare(problem: Problem) -> Any:
    """Return a context with a product of torch's alone: the second backward pass, and no vector."""
    from contextlib import contextmanager

    @contextmanager
    def opened() -> Any:
        parameters = problem.parameters
        slopes = torch.autograd.grad(problem.loss(), parameters, create_graph=True)
        v = [torch.randn_like(p) for p in parameters]
        yield lambda: len([torch.autograd.grad(slopes, parameters, v, retain_graph=True)])

    return opened()


def _gradient_times(problem: Problem) -> list[float]:
    """Return the seconds of several gradients, by torch as a training takes them."""
    times = []
    for _ in range(_GRADIENTS):
        begun = time.perf_counter()
        problem.gradient()
        times.append(time.perf_counter() - begun)
    return times


def peak_bytes() -> int:
    """Return the largest resident memory of this process since `forget_peak`."""
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return 1024 * int(status.split()[0])


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def forget_peak() -> None:
    """Let the peak of resident memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def limit_memory(room: float) -> None:
    """Let an allocation beyond some bytes more than now raise, before the machine runs out of memory."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + int(room),) * 2)


def main(arguments: Sequence[str]) -> None:
    """Run one arm and print its outcomes as JSON."""
    name, arm, threads, seed, room = arguments
    torch.set_num_threads(int(threads))
    warnings.simplefilter("ignore")
    if arm != "reference":
        limit_memory(float(room))
    try:
        if arm == "products":
            outcomes = products(name)
        elif arm in BUDGETS:
            outcomes = budgets(name, BUDGETS[arm])
        else:
            outcomes = [reference(name) if arm == "reference" else run(name, arm, int(seed))]
    except Exception as error:  # whatever a library raises is its outcome
        line = " ".join(str(error).split())[:100]
        gone = isinstance(error, MemoryError) or "DefaultCPUAllocator" in line
        outcomes = [Outcome(arm, remark="out of memory" if gone else f"failed: {type(error).__name__}: {line}")]
    print(json.dumps([asdict(one) for one in outcomes]))


if __name__ == "__main__":
    main(sys.argv[1:])
