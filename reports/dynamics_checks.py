"""Findings of the dynamics report: what the steps did, each checked here in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Finding
from lossscope.reports.memory_tables import Memories
from lossscope.reports.numerals import percent
from lossscope.reports.step_visits import step_visits
from lossscope.reports.trigger_tables import Triggers

if TYPE_CHECKING:
    from lossscope.landscape.dynamics import ArmMemory, Estimate, LayerRecord, TriggerRecord
    from lossscope.landscape.run import Run

__all__ = ["layers_stayed", "model_predicted", "shear_keeps_longer", "trigger_beats_noise"]

_NOTHING: Final = "no such number in these runs"
_TOLERANCE: Final = 0.10


def shear_keeps_longer(memories: Memories) -> Finding:
    """Whether D(k) is above 0 at every lag of every arm, judged only where its interval excludes 0."""
    claim = "The shear keeps its direction longer than the gradient does (D(k) > 0 at every lag)."
    source = "pairs.parquet: cosine"
    signs = {arm: _signs(memory) for arm, memory in memories.items() if memory is not None and memory.differences}
    found = [sign for by_lag in signs.values() for sign in by_lag.values()]
    if not found:
        return Finding(claim, None, _NOTHING, source)
    outcome = False if -1 in found else (None if 0 in found else True)
    return Finding(claim, outcome, "; ".join(f"{arm}: {_signs_in_words(signs[arm])}" for arm in signs), source)


def trigger_beats_noise(triggers: Triggers) -> Finding:
    """Whether every arm's trigger fired at more of the steps before its cap than on noise, beyond the interval."""
    claim = "The trigger fires more often than on noise."
    source = "steps.parquet: synced; run.json: trigger"
    judged = {arm: _against_noise(records) for arm, records in triggers.items()}
    found = {arm: one for arm, one in judged.items() if one is not None}
    if not found:
        return Finding(claim, None, _NOTHING, source)
    signs = [sign for sign, _ in found.values()]
    outcome = False if -1 in signs else (None if 0 in signs else True)
    return Finding(claim, outcome, "; ".join(f"{arm}: {words}" for arm, (_, words) in found.items()), source)


def model_predicted(runs: Sequence[Run]) -> Finding:
    """Whether r2 is at most 10 % at every visit; rounding is on the side of not knowing.

    It is judged by r2 and not by the trust ratio: where slope and curvature cancel, the ratio to what is left of them
    is large though the model was right.
    """
    claim = (
        "The second-order model predicted the change of the loss along the step to 10 % of its terms at every visit."
    )
    source = "probes.parquet: relative_second, second_remainder"
    visits = [(run.name, visit) for run in runs for visit in step_visits(run)]
    if not visits:
        return Finding(claim, None, _NOTHING, source)
    known = [
        (visit.least, visit.most, name, visit.step)
        for name, visit in visits
        if visit.least is not None and visit.most is not None
    ]
    within = sum(most <= _TOLERANCE for _, most, _, _ in known)
    outside = sum(least > _TOLERANCE for least, _, _, _ in known)
    open_ones = len(visits) - within - outside
    numbers = f"within 10 % at {within} of {len(visits)} visits" + (f", beyond at {outside}" if outside else "")
    numbers += f", hidden by rounding at {open_ones}" if open_ones else ""
    if known:
        _, most, name, step = max(known)
        numbers += f"; farthest at most {percent(most)} ({name}, step {step})"
    return Finding(claim, False if outside else (None if open_ones else True), numbers, source)


def layers_stayed(records: Sequence[tuple[Run, LayerRecord]]) -> Finding:
    """Whether no layer's remainder stood out in any run; a run with too few looks leaves it open."""
    claim = "No layer left its Taylor model."
    source = "tensors.parquet: remainder"
    if not records:
        return Finding(claim, None, _NOTHING, source)
    left = [(run, one) for run, one in records if one.layer is not None]
    judged = sum(one.judged for _, one in records)
    numbers = f"one left in {len(left)} of {judged} runs" if judged else "too few looks in every run"
    if left:
        run, first = left[0]
        numbers += f"; {first.layer} at step {first.step} ({run.name})"
    if judged < len(records) and judged:
        numbers += f"; {len(records) - judged} more with too few looks"
    return Finding(claim, False if left else (True if judged == len(records) else None), numbers, source)


def _signs(memory: ArmMemory) -> dict[int, int]:
    """Of each lag whether D is above or below 0 beyond its interval: 1, -1, or 0 where that is open."""
    return {lag: _sign(one.estimate, 0.0) if one.judged else 0 for lag, one in memory.differences.items()}


def _sign(estimate: Estimate, value: float) -> int:
    """1 or -1 where the whole interval lies above or below the value, else 0."""
    return int(estimate.low > value) - int(estimate.high < value)


def _signs_in_words(signs: dict[int, int]) -> str:
    """Which lags are above, below and open."""
    parts = []
    for sign, words in ((1, "above 0"), (-1, "below 0"), (0, "open")):
        lags = [str(lag) for lag, one in signs.items() if one == sign]
        parts += [f"{words} at lag {', '.join(lags)}"] if lags else []
    return ", ".join(parts)


def _against_noise(records: Sequence[tuple[Run, TriggerRecord]]) -> tuple[int, str] | None:
    """An arm's chance to fire less that of noise: its sign beyond the interval, and in words; None without one."""
    from lossscope.landscape.dynamics import pooled, seed_of

    audits = [(seed_of(run), record.audit) for run, record in records if record.audit is not None]
    found = pooled((seed, _shifted(one.chance, -one.null_chance)) for seed, one in audits)
    if not found.seeds:
        return None
    sign = _sign(found.estimate, 0.0) if found.judged else 0
    null = audits[0][1].null_chance
    words = {1: "more than noise", -1: "less than noise", 0: "open"}[sign]
    share = percent(null + found.estimate.value)
    return sign, f"{words}, at {share} of the steps before the cap where noise does at {percent(null)}"


def _shifted(estimate: Estimate, by: float) -> Estimate:
    """The estimate with a number added."""
    return replace(estimate, value=estimate.value + by, low=estimate.low + by, high=estimate.high + by)
