"""The fourth job of the curvature benchmark: what one product costs, by each of our methods and by the rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import curvature_rivals as rivals
import torch
from curvature_jobs import forget_choices, timed
from networks import Problem

from lossscope.probes import hessian
from lossscope.probes.operators.hessian import HESSIAN_METHODS

EXPECTED = 100  # products that a method is chosen for
_DEAR = 100  # gradients of set-up from which two rounds are enough
Opened = Callable[[], AbstractContextManager[Callable[[], int]]]


@dataclass
class ProductArm:
    """A way to take products; calls return how many columns they multiplied."""

    label: str
    opened: Opened
    candidate: bool = False  # whether our choice could have been this one
    notes: list[str] = field(default_factory=list)  # what was chosen
    first: list[float] = field(default_factory=list)  # seconds of opening it and of the first call
    later: list[float] = field(default_factory=list)  # seconds a column after that
    refusal: str = ""  # why it has no row

    @property
    def product(self) -> float:
        """Median seconds a column once it is set up."""
        return median(self.later)

    @property
    def setup(self) -> float:
        """Median seconds that the first column takes longer."""
        return max(0.0, median(self.first) - self.product)

    @property
    def amortised(self) -> float:
        """Seconds a column of a job of a hundred, its set-up counted."""
        return self.product + self.setup / EXPECTED


def product_arms(problem: Problem) -> list[ProductArm]:
    """Our choice first, then each of its candidates, then the rivals."""
    notes: list[str] = []
    arms = [ProductArm("lossscope, auto", partial(_chosen, problem, notes), notes=notes)]
    for method in HESSIAN_METHODS:
        if method.name != "compile" or problem.device.type == "cuda":
            for width in method.widths:
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
def _chosen(problem: Problem, notes: list[str]) -> Iterator[Callable[[], int]]:
    """Blocks of our products as the operator chooses to take them, and as wide as it likes."""
    forget_choices()
    operator = hessian(problem.objective())
    V = torch.randn(problem.size, 8, device=problem.device)

    def call() -> int:
        width = operator.width
        operator @ V[:, :width]
        notes[:] = [operator.method + (f", blocks of {width}" if width > 1 else "")]
        return width

    with operator.cached(expected=EXPECTED):
        yield call


@contextmanager
def _ours(problem: Problem, method: str, width: int) -> Iterator[Callable[[], int]]:
    """Blocks of our products by one method."""
    operator = hessian(problem.objective(), method=method)
    V = torch.randn(problem.size, width, device=problem.device)

    def call() -> int:
        operator @ V
        return width

    with operator.cached(expected=EXPECTED):
        yield call


@contextmanager
def _theirs(
    opened: Callable[[Problem], AbstractContextManager[Callable[[], object]]], problem: Problem
) -> Iterator[Callable[[], int]]:
    """A rival's product of one vector."""
    with opened(problem) as product:

        def call() -> int:
            product()
            return 1

        yield call


def time_products(problem: Problem, arms: Sequence[ProductArm], rounds: int, repeats: int) -> float:
    """Time all arms in turning order; returns seconds a gradient. An arm that raises keeps its reason."""
    gradients: list[float] = []
    for turn in range(rounds):
        for place in range(len(arms)):
            arm = arms[(turn + place) % len(arms)]
            dear = len(arm.first) >= 2 and arm.setup > _DEAR * median(gradients)
            if not (arm.refusal or dear):
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
        except Exception as error:  # a candidate that torch cannot take is told and left out
            arm.refusal = f"{type(error).__name__}: {str(error).splitlines()[0]}"
