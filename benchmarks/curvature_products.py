"""Fourth job of the curvature benchmark: cost of one Hessian product, by each of our methods and by other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import curvature_rivals as rivals
import torch
from curvature_jobs import timed
from networks import Problem

from lossscope.probes import hessian
from lossscope.probes.operators.hessian import HESSIAN_METHODS

JOB = 100  # products over which the set-up is amortized
_EXPENSIVE = 100  # set-up cost in gradients above which two rounds are enough
Opened = Callable[[], AbstractContextManager[Callable[[], int]]]


@dataclass
class ProductArm:
    """A way of taking products; each call returns the number of columns multiplied."""

    label: str
    opened: Opened
    candidate: bool = False  # True if it is one of our methods
    first: list[float] = field(default_factory=list)  # seconds of the set-up and the first call
    later: list[float] = field(default_factory=list)  # seconds per column after that
    refusal: str = ""  # the error, if it has no row

    @property
    def product(self) -> float:
        """Median seconds per column after the set-up."""
        return median(self.later)

    @property
    def setup(self) -> float:
        """Median additional seconds of the first column."""
        return max(0.0, median(self.first) - self.product)

    @property
    def amortized(self) -> float:
        """Seconds per column of a job of 100 columns, including the set-up."""
        return self.product + self.setup / JOB


def product_arms(problem: Problem) -> list[ProductArm]:
    """Return our default first, then each of our methods, then the other libraries."""
    arms = [ProductArm("lossscope, default", partial(_ours, problem, "reverse", 1))]
    for method in HESSIAN_METHODS:
        if method.name != "compile" or problem.device.type == "cuda":
            for width in sorted({1, method.width}):
                label = method.name if width == 1 else f"{method.name}, blocks of {width}"
                arms.append(ProductArm(label, partial(_ours, problem, method.name, width), True))
    libraries = {
        "pyhessian": (rivals.pyhessian_product, problem),
        "curvlinops": (rivals.curvlinops_product, problem.elementary()),
        "hessian_eigenthings": (rivals.eigenthings_product, problem),
    }
    for name, (opened, where) in libraries.items():
        if rivals.installed(name):
            arms.append(ProductArm(name.replace("_", "-"), partial(_theirs, opened, where)))
    return arms


@contextmanager
def _ours(problem: Problem, method: str, width: int) -> Iterator[Callable[[], int]]:
    """Yield a call that takes a block of our products by one method."""
    operator = hessian(problem.objective(), method=method)
    V = torch.randn(problem.size, width, device=problem.device)

    def call() -> int:
        operator @ V
        return width

    with operator.cached():
        yield call


@contextmanager
def _theirs(
    opened: Callable[[Problem], AbstractContextManager[Callable[[], object]]], problem: Problem
) -> Iterator[Callable[[], int]]:
    """Yield a call that takes another library's product with one vector."""
    with opened(problem) as product:

        def call() -> int:
            product()
            return 1

        yield call


def time_products(problem: Problem, arms: Sequence[ProductArm], rounds: int, repeats: int) -> float:
    """Time all arms in rotating order and return the seconds per gradient. An arm that raises keeps its error."""
    gradients: list[float] = []
    for turn in range(rounds):
        for place in range(len(arms)):
            arm = arms[(turn + place) % len(arms)]
            expensive = len(arm.first) >= 2 and arm.setup > _EXPENSIVE * median(gradients)
            if not (arm.refusal or expensive):
                _time_product(problem, arm, repeats)
            gradients += [timed(problem, problem.gradient) for _ in range(3)]
    return median(gradients)


def _time_product(problem: Problem, arm: ProductArm, repeats: int) -> None:
    with ExitStack() as stack:
        try:
            calls: list[Callable[[], int]] = []
            columns: list[int] = []

            def first() -> None:
                calls.append(stack.enter_context(arm.opened()))
                columns.append(calls[0]())

            arm.first.append(timed(problem, first))
            arm.later += [timed(problem, calls[0]) / columns[0] for _ in range(repeats)]
        except Exception as error:  # a method that torch does not support here is reported and left out
            arm.refusal = f"{type(error).__name__}: {str(error).splitlines()[0]}"
