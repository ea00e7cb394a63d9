"""Trying a way to take products: is it right, and what does it cost?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from lossscope.probes.objective.autograd_guards import graph_nodes
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.method import BatchProduct, Method, held_bytes

__all__ = ["Bench", "Trial", "ahead", "mismatch", "now", "out_of_memory", "reason"]

_DEAR: Final = 2.0  # a method not yet run is expected to cost so many times the plain one
_TOLERANCE: Final = 4.0  # roots of the rounding unit by which a method may differ from the plain one
_WARM: Final = 2  # runs after the first
T = TypeVar("T")
_LOADED: set[str] = set()  # methods that this process has used, so that torch has loaded what they need


@dataclass(frozen=True)
class Trial:
    """What a method costs on one batch, or why it cannot be used."""

    method: str
    width: int  # columns at a time
    setup_seconds: float  # to prepare the batch
    column_seconds: float  # for each column; nan where it cannot be used
    bytes: int = 0  # that the prepared batch holds
    nodes: int = 0  # of the graph that it holds
    refused: str = ""  # why it cannot be used; empty where it can
    passing: bool = False  # whether that may be otherwise another time


class Bench:
    """One batch on which methods are compared with the plain one and timed.

    Args:
        objective: The loss; inside its `evaluating`.
        at: The batch.
        plain: The method to compare with; it is run twice, and its first run may be slow, as torch is not warm yet.
        prepare: Makes the product of a batch by a method.
    """

    def __init__(
        self,
        objective: Objective,
        at: BatchEvaluation,
        plain: Method,
        prepare: Callable[[Method, BatchEvaluation], BatchProduct],
    ) -> None:
        self._at, self._prepare, self._device = at, prepare, objective.device
        self._plain = plain
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(2, objective.size, generator=generator, dtype=torch.float64)
        self._rows = rows.to(objective.device, objective.dtype)
        self._mixture = torch.randn(64, 2, generator=generator, dtype=torch.float64)
        made, setup = self._timed(partial(prepare, plain, at))
        runs = [self._timed(partial(made.multiply, row[None], True)) for row in self._rows]
        self._images = torch.cat([image for image, _ in runs])
        seconds = min(seconds for _, seconds in runs)
        if plain.is_gradient:  # a product costs more than a gradient: the rest is what torch loads and checks at first
            setup = min(setup, seconds)
        self._unit = objective.vector.unit
        self.plain = Trial(plain.name, 1, setup, seconds, held_bytes(made), sum(1 for _ in graph_nodes(made.ends)))

    @property
    def again_seconds(self) -> float:
        """What `again` may cost."""
        return self.plain.setup_seconds + self.plain.column_seconds

    def again(self) -> None:
        """Time the plain method once more, its preparation too; the smaller times count."""
        made, setup = self._timed(partial(self._prepare, self._plain, self._at))
        _, seconds = self._timed(partial(made.multiply, self._rows[:1], True))
        setup, seconds = min(setup, self.plain.setup_seconds), min(seconds, self.plain.column_seconds)
        self.plain = replace(self.plain, setup_seconds=setup, column_seconds=seconds)

    def trials(self, method: Method, known: Collection[int], left: Callable[[], float]) -> list[Trial]:
        """What a method costs at each of its widths, as far as time is left.

        Args:
            method: The method.
            known: Widths to leave out.
            left: How many seconds are left.

        Returns:
            The trials; a refusal is the last one.
        """
        found: list[Trial] = []
        ready: tuple[BatchProduct, float] | None = None
        for width in method.widths:
            if width in known:
                continue
            if ahead(method, width, self.plain, prepared=ready is not None) > left():
                break
            try:
                ready = ready or self._timed(partial(self._prepare, method, self._at))
                trial = self._trial(method.name, *ready, width, left)
                _LOADED.add(method.name)
            except Exception as error:  # whatever a method stumbles over, it is passed over
                passing = out_of_memory(error)
                trial = Trial(method.name, width, math.nan, math.nan, refused=reason(error), passing=passing)
            if trial is None:
                break
            found.append(trial)
            if trial.refused:
                break
        return found

    def _trial(
        self, name: str, made: BatchProduct, setup: float, width: int, left: Callable[[], float]
    ) -> Trial | None:
        """What a prepared method costs in blocks of some width, once such a block is known to be right.

        The first run may be slow, perhaps because torch had to load something; of the two after it the faster one
        counts, as far as there is time. None where there is none for a second after a first run that was slow.
        """
        mixture = self._mixture[:width].to(self._rows)
        block, expected = mixture @ self._rows, mixture @ self._images
        product = partial(made.multiply, block, True)
        found, seconds = self._timed(product)
        if wrong := mismatch(found, expected, self._unit):
            wrong = f"its product differs from that of {self.plain.method} by {wrong} of it"
            return Trial(name, width, setup, math.nan, refused=wrong)
        if seconds >= left() and seconds > width * self.plain.column_seconds:
            return None
        for _ in range(_WARM):
            if seconds < left():
                seconds = min(seconds, self._timed(product)[1])
        return Trial(name, width, setup, seconds / width, held_bytes(made))

    def _timed(self, function: Callable[[], T]) -> tuple[T, float]:
        """What a function returns, and how long it took."""
        begun = now(self._device)
        return function(), now(self._device) - begun


def ahead(method: Method, width: int, plain: Trial, *, prepared: bool = False) -> float:
    """The seconds that a first run of a method may cost, going by what the plain one cost.

    Args:
        method: The method.
        width: Columns of the run.
        plain: What the plain one cost.
        prepared: Whether the batch is prepared already.

    Returns:
        The seconds; a generous guess.
    """
    seconds = _DEAR * width * plain.column_seconds
    if prepared:
        return seconds
    if method.name not in _LOADED:
        seconds += method.first_seconds
    return seconds + method.node_seconds * plain.nodes + (plain.setup_seconds if method.is_gradient else 0.0)


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, after all work on the device is done.

    Args:
        device: Where the work is.

    Returns:
        The seconds; only differences mean something.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reason(error: Exception) -> str:
    """An error in one short line.

    Args:
        error: The error.

    Returns:
        Its type and the first 160 characters of what it says.
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which says nothing of a method that may have it another time.

    Args:
        error: The error, of torch on a device or on the CPU, or of Python.

    Returns:
        Whether it did.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def mismatch(found: Tensor, expected: Tensor, unit: float) -> str:
    """How far products are from those of the plain method, where that is more than rounding.

    Args:
        found: `(k, n)`, one product in each row.
        expected: `(k, n)`, the same by the plain method.
        unit: The relative rounding unit of the parameters.

    Returns:
        The largest error of a row in units of the largest row, as text; empty up to four roots of the unit.
    """
    size, error = (float(torch.linalg.vector_norm(rows.double(), dim=1).max()) for rows in (expected, found - expected))
    error = error / size if size > 0 else error
    return "" if error <= _TOLERANCE * math.sqrt(unit) else f"{error:.1e}"
