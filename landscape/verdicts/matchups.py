"""Matchups of a claim: its arms, looked up among runs, and their pairs on each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lossscope.landscape.verdicts.claims import Claim
from lossscope.landscape.verdicts.pairs import Matchup, arms_of, matchup, resolve, unknown_arm
from lossscope.landscape.verdicts.verdict import Reason

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["matchups_of", "missing_tasks", "unknown_arms"]


def matchups_of(claim: Claim, runs: Sequence[Run]) -> tuple[list[Matchup], list[Reason]]:
    """Return the matchups of a claim's arms on its tasks, and the reasons why others are missing."""
    tasks = arms_of(runs)
    reasons = missing_tasks(claim, tasks)
    wanted = [task for task in tasks if task in claim.tasks or not claim.tasks]
    reasons += [Reason("NO_PAIRS", text) for text in unknown_arms(claim, {task: tasks[task] for task in wanted})]
    found = []
    for task in wanted:
        sides = [{name: resolve(name, tasks[task]) for name in names} for names in (claim.a, claim.b)]
        if task not in claim.tasks and not all(any(side.values()) for side in sides):
            continue  # a task that others use
        found += [matchup(task, a, b, of_a, of_b) for a, of_a in sides[0].items() for b, of_b in sides[1].items()]
    return ([], reasons) if reasons else (found, [])


def missing_tasks(claim: Claim, tasks: Iterable[str]) -> list[Reason]:
    """Return a reason for each task that a claim names and of which no run is there."""
    here = list(tasks)
    return [
        Reason("NO_PAIRS", f"no run of {task} is here; tasks here: {', '.join(here) or 'none'}")
        for task in claim.tasks
        if task not in here
    ]


def unknown_arms(claim: Claim, tasks: Mapping[str, dict[str, list[Run]]]) -> list[str]:
    """Return a clause for each arm of which no run is there."""
    known = [name for arms in tasks.values() for name in arms]
    known += [
        str(one.manifest.get("arm") or one.name) for arms in tasks.values() for runs in arms.values() for one in runs
    ]
    return [unknown_arm(name, known) for name in (*claim.a, *claim.b) if name not in known]
