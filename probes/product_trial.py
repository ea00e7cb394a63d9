"""Trying a way to take products: is it right, and what does it cost?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from lossscope.probes.custom_function import graph_nodes
from lossscope.probes.evaluation import Pass
from lossscope.probes.objective import Objective
from lossscope.probes.product_method import BatchProduct, Method, held_bytes

__all__ = ["Bench", "Trial", "ahead", "now", "reason"]

_DEAR: Final = 2.0  # a method not yet run is expected to cost so many times the plain one
_TOLERANCE: Final = 4.0  # roots of the rounding unit by which a method may differ from the plain one
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


class Bench:
    """One batch on which methods are compared with the plain one and timed.

    Args:
        objective: The loss; inside its `evaluating`.
        at: The batch.
        plain: The method to compare with; it is run twice.
        prepare: Makes the product of a batch by a method.
    """

    def __init__(
        self, objective: Objective, at: Pass, plain: Method, prepare: Callable[[Method, Pass], BatchProduct]
    ) -> None:
        self._at, self._prepare, self._device = at, prepare, objective.device
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(2, objective.size, generator=generator, dtype=torch.float64)
        self._rows = rows.to(objective.device, objective.dtype)
        self._mixture = torch.randn(64, 2, generator=generator, dtype=torch.float64)
        made, setup = self._timed(partial(prepare, plain, at))
        runs = [self._timed(partial(made.multiply, row[None], True)) for row in self._rows]
        self._images = torch.cat([image for image, _ in runs])
        seconds = min(seconds for _, seconds in runs)
        self._bound = _TOLERANCE * math.sqrt(objective.vector.unit)
        self.plain = Trial(plain.name, 1, setup, seconds, held_bytes(made), sum(1 for _ in graph_nodes(made.ends)))

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
                trial = Trial(method.name, width, math.nan, math.nan, refused=reason(error))
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

        None where time is up after a first run that was slow, perhaps because torch had to load something.
        """
        mixture = self._mixture[:width].to(self._rows)
        block, expected = mixture @ self._rows, mixture @ self._images
        product = partial(made.multiply, block, True)
        found, cold = self._timed(product)
        if not (error := _distance(found, expected)) <= self._bound:
            wrong = f"its product differs from that of {self.plain.method} by {error:.1e} of it"
            return Trial(name, width, setup, math.nan, refused=wrong)
        if cold < left():
            cold = min(cold, self._timed(product)[1])
        elif cold > width * self.plain.column_seconds:
            return None
        return Trial(name, width, setup, cold / width, held_bytes(made))

    def _timed(self, function: Callable[[], T]) -> tuple[T, float]:
        """What a function returns, and how long it took."""
        begun = now(self._device)
        return function(), now(self._device) - begun


def ahead(method: Method, width: int, plain: Trial, *, prepared: bool = False) -> float:
    """The seconds that a first run of a method may cost, going by what the plain one cost."""
    seconds = _DEAR * width * plain.column_seconds
    if prepared:
        return seconds
    if method.name not in _LOADED:
        seconds += method.first_seconds
    return seconds + method.node_seconds * plain.nodes + (plain.setup_seconds if method.is_gradient else 0.0)


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, after all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reason(error: Exception) -> str:
    """An error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _distance(found: Tensor, expected: Tensor) -> float:
    """The largest error of a row, in units of the largest row."""
    size, error = (float(torch.linalg.vector_norm(rows.double(), dim=1).max()) for rows in (expected, found - expected))
    return error / size if size > 0 else error
