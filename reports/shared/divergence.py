"""Divergence in reports: the first line, the first finding, and what it means for the other findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from lossscope.landscape.analysis.divergence import Divergence
from lossscope.reports.content import Finding
from lossscope.reports.shared.number_format import plain

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["DIVERGENCE_NOTE", "alert", "in_words", "losses_kept_finite", "without_lost_evaluations"]

DIVERGENCE_NOTE: Final = (
    "A loss rose far above its start if the median of a tenth of the steps, of 1 to 10 in a row, exceeds start + "
    "2 |start| + 1 or 1000 times the start; the start is the first loss, or the first such median if that is smaller."
)
_MOST_NAMES: Final = 6
Diverged: TypeAlias = Sequence[tuple[str, Divergence]]  # name of a run, and its divergence


def in_words(found: Divergence) -> str:
    """Return a divergence as a clause: what the loss did, at which step."""
    if not found.finite:
        before = "" if found.before is None else f" (before: {plain(found.before)})"
        return f"the loss stopped being finite at step {found.step}{before}"
    end = "not finite" if found.end is None else plain(found.end)
    return (
        f"the loss rose far above its start at step {found.step} (start {plain(found.start)}, "
        f"highest {plain(found.highest)}, end {end})"
    )


def alert(diverged: Diverged) -> str:
    """Return the first line of a report: which runs diverged, and at which step; "" if none did."""
    if not diverged:
        return ""
    named = [f"{name}: {in_words(one)}" for name, one in diverged[:_MOST_NAMES]]
    more = len(diverged) - len(named)
    return f"Diverged: {'; '.join(named)}{f'; and {more} more' if more else ''}"


def losses_kept_finite(runs: Sequence[Run], diverged: Diverged) -> Finding:
    """Check that the loss of every run stayed finite and never rose far above its start."""
    claim = "The loss of every run stayed finite and never rose far above its start."
    unknown = [run.name for run in runs if not _has_loss(run)]
    kept = len(runs) - len(diverged) - len(unknown)
    numbers = f"{kept} of {len(runs)} runs"
    numbers += f"; {alert(diverged).removeprefix('Diverged: ')}" if diverged else ""
    numbers += f"; no loss was recorded in {len(unknown)}" if unknown else ""
    outcome = False if diverged else (None if unknown or not runs else True)
    otherwise = "The loss of a run stopped being finite or rose far above its start."
    return Finding(claim, outcome, numbers, "steps.parquet: loss", otherwise)


def without_lost_evaluations(finding: Finding, diverged: Diverged) -> Finding:
    """Return a finding, open instead of true if the loss of a run stopped being finite.

    Evaluations after that have no numbers, so a claim about every evaluation rests on those before it.
    """
    lost = [(name, one) for name, one in diverged if not one.finite]
    if finding.outcome is not True or not lost:
        return finding
    name, one = lost[0]
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return replace(
        finding,
        outcome=None,
        numbers=f"{finding.numbers}; nothing is known of {name}{more} after its loss stopped being finite "
        f"(step {one.step})",
    )


def _has_loss(run: Run) -> bool:
    """Return True if any loss was recorded."""
    return bool(run.columns("steps", "loss")["loss"].notna().any() or (run.estimates["measure"] == "loss").any())
