"""Interleaved timing of several arms in one process, so that other load on the machine affects them equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass
class Arm:
    """A row of a table: a label, and the function that takes one step."""

    label: str
    step: Callable[[], object]


def timed(arm: Arm, repeats: int) -> float:
    """Return the seconds per step."""
    start = time.perf_counter()
    for _ in range(repeats):
        arm.step()
    return (time.perf_counter() - start) / repeats


def medians(arms: Sequence[Arm], rounds: int, repeats: int) -> list[float]:
    """Return the median seconds per step of each arm, over rounds that time the arms in turn."""
    for arm in arms:
        timed(arm, max(2, repeats // 4))
    seen: list[list[float]] = [[] for _ in arms]
    for turn in range(rounds):
        order = [(turn + i) % len(arms) for i in range(len(arms))]
        for index in order:
            seen[index].append(timed(arms[index], repeats))
    return [median(times) for times in seen]
