"""Timing many arms in one process, in turn, so that whatever else the machine does hits them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass
class Arm:
    """A row of a table: a label, and what one step of it runs."""

    label: str
    step: Callable[[], object]


def timed(arm: Arm, repeats: int) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    for _ in range(repeats):
        arm.step()
    return (time.perf_counter() - start) / repeats


def medians(arms: Sequence[Arm], rounds: int, repeats: int) -> list[float]:
    """Median seconds a step of each arm, over rounds that evaluation the arms in turn."""
    for arm in arms:
        timed(arm, max(2, repeats // 4))
    seen: list[list[float]] = [[] for _ in arms]
    for turn in range(rounds):
        order = [(turn + i) % len(arms) for i in range(len(arms))]
        for index in order:
            seen[index].append(timed(arms[index], repeats))
    return [median(times) for times in seen]
