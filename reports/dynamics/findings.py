"""Findings of the dynamics report: direction autocorrelation, trigger, and quadratic model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Finding
from lossscope.reports.dynamics.minibatch_tables import Memories
from lossscope.reports.dynamics.trigger_tables import Triggers
from lossscope.reports.shared.findings import NOT_RECORDED
from lossscope.reports.shared.gaps import missing_in_words
from lossscope.reports.shared.number_format import percent
from lossscope.reports.shared.quantities import number
from lossscope.reports.shared.step_quality import step_evaluations

if TYPE_CHECKING:
    from lossscope.landscape.analysis import ArmMemory, Estimate, Pooled, TriggerRecord
    from lossscope.landscape.run import Run

__all__ = ["model_predicted", "shear_keeps_longer", "trigger_beats_noise"]

_TOLERANCE: Final = 0.10
_FEWEST: Final = 6  # smallest number of coin tosses that can reject a fair coin at 5 %


def shear_keeps_longer(memories: Memories) -> Finding:
    """Check that D(k) > 0 at every lag of every arm; a lag whose interval contains 0 is inconclusive."""
    claim = "The shear keeps its direction longer than the gradient (D(k) > 0 at every lag)."
    source = "pairs.parquet: cosine"
    signs = {arm: _signs(memory) for arm, memory in memories.items() if memory is not None and memory.differences}
    found = [sign for by_lag in signs.values() for sign in by_lag.values()]
    if not found:
        return Finding(claim, None, NOT_RECORDED, source)
    outcome = False if -1 in found else (None if 0 in found else True)
    numbers = "; ".join(f"{arm}: {_signs_in_words(signs[arm])} ({_over(_widest(memories[arm]))})" for arm in signs)
    otherwise = "The shear does not keep its direction longer than the gradient (D(k) < 0 at some lag)."
    return Finding(claim, outcome, numbers, source, otherwise)


def trigger_beats_noise(triggers: Triggers) -> Finding:
    """Check that every arm's adaptive trigger fired more often than under noise, beyond the interval.

    Under noise, half of the values beyond the threshold on either side are below it. The random timer ignores phi: it
    is listed for comparison and not tested.
    """
    claim = "The trigger fires more often than under noise."
    source = "steps.parquet: synced, phi, threshold; run.json: trigger"
    judged: dict[str, tuple[int, str]] = {}
    timers: list[str] = []
    for arm, records in triggers.items():
        adaptive = [(run, one) for run, one in records if one.mode != "timer"]
        if any(one.test for _, one in adaptive):
            judged[arm] = _against_noise(adaptive)
        timers += _timer_in_words(arm, [(run, one) for run, one in records if one.mode == "timer"])
    signs = [sign for sign, _ in judged.values()]
    outcome = False if -1 in signs else (True if signs and 0 not in signs else None)
    words = [*(f"{arm}: {one}" for arm, (_, one) in judged.items()), *timers]
    otherwise = "The trigger fires less often than under noise."
    return Finding(claim, outcome, "; ".join(words) or NOT_RECORDED, source, otherwise)


def model_predicted(runs: Sequence[Run]) -> Finding:
    """Check that r2 is at most 10 % at every evaluation; values hidden by rounding are inconclusive.

    The test uses r2 rather than the trust ratio: if the linear and the quadratic term cancel, the trust ratio is
    far from 1 although the model was accurate.
    """
    claim = (
        "On the fixed data, the quadratic model predicted the loss change along the step to within 10 % of its terms "
        "at every evaluation."
    )
    source = "probes.parquet: relative_second"
    by_run = {run.name: step_evaluations(run) for run in runs}
    evaluations = [(name, evaluation) for name, found in by_run.items() for evaluation in found]
    if not evaluations:
        return Finding(claim, None, NOT_RECORDED, source)
    known = [
        (evaluation.least, evaluation.most, name, evaluation.step)
        for name, evaluation in evaluations
        if evaluation.least is not None and evaluation.most is not None
    ]
    within = sum(most <= _TOLERANCE for _, most, _, _ in known)
    outside = sum(least > _TOLERANCE for least, _, _, _ in known)
    open_ones = len(evaluations) - within - outside
    numbers = f"within 10 % at {within} of {len(evaluations)} evaluations {_of_runs(sum(map(bool, by_run.values())))}"
    numbers += f", outside at {outside}" if outside else ""
    numbers += f", hidden by rounding at {open_ones}" if open_ones else ""
    if known:
        _, most, name, step = max(known, key=lambda one: one[1])
        numbers += f"; largest at most {percent(most)} ({name}, step {step})"
    missing = missing_in_words(runs, ("trust_ratio", "relative_second"))
    numbers += f"; {missing}" if missing else ""
    outcome = False if outside else (None if open_ones or missing else True)
    otherwise = (
        "On the fixed data, the quadratic model missed the loss change along the step by more than 10 % of its terms "
        "at some evaluations."
    )
    return Finding(claim, outcome, numbers, source, otherwise)


def _signs(memory: ArmMemory) -> dict[int, int]:
    """Return for each lag the sign of D beyond its interval: 1, -1, or 0 if inconclusive."""
    return {lag: _sign(one.estimate, 0.0) if one.judged else 0 for lag, one in memory.differences.items()}


def _sign(estimate: Estimate, value: float) -> int:
    """Return 1 or -1 if the whole interval lies above or below the value, else 0."""
    return int(estimate.low > value) - int(estimate.high < value)


def _signs_in_words(signs: dict[int, int]) -> str:
    """Return the lags with D above 0, below 0 and inconclusive, as text."""
    parts = []
    for sign, words in ((1, "above 0"), (-1, "below 0"), (0, "inconclusive")):
        lags = [str(lag) for lag, one in signs.items() if one == sign]
        parts += [f"{words} at lag {', '.join(lags)}"] if lags else []
    return ", ".join(parts)


def _against_noise(records: Sequence[tuple[Run, TriggerRecord]]) -> tuple[int, str]:
    """Return the sign of an arm's share below the threshold minus 1/2, 0 if inconclusive, and the result as text."""
    from lossscope.landscape.analysis import pooled, seed_of

    found = pooled((seed_of(run), _enough(record)) for run, record in records)
    steps = sum(record.test.share.samples for _, record in records if record.test is not None)
    if not found.seeds:
        return 0, f"inconclusive, with {steps} steps before the cap beyond the threshold on either side"
    sign = _sign(found.estimate, 0.5) if found.judged else 0
    words = {1: "more than under noise", -1: "less than under noise", 0: "inconclusive"}[sign]
    where = f"the {steps} steps before the cap that were beyond the threshold on either side"
    return sign, f"{words}, below at {percent(found.estimate.value)} of {where}, noise at 50 % ({_over(found)})"


def _enough(record: TriggerRecord) -> Estimate:
    """Return the share of a run, or a missing value if it has too few steps to be distinguished from noise."""
    from lossscope.landscape.analysis import MISSING

    return record.test.share if record.test is not None and record.test.share.samples >= _FEWEST else MISSING


def _timer_in_words(arm: str, records: Sequence[tuple[Run, TriggerRecord]]) -> list[str]:
    """Return the rate of an arm's random timer and its nominal rate, as text; empty without a timer."""
    from lossscope.landscape.analysis import MISSING, pooled, seed_of

    tests = [one.test for _, one in records if one.test is not None]
    found = pooled((seed_of(run), one.test.share if one.test else MISSING) for run, one in records)
    if number(found.estimate.value) is None:
        return []
    drawn = percent(tests[0].expected)
    return [
        f"{arm}, random timer: fired at {percent(found.estimate.value)} of the steps before its cap, nominal {drawn}"
    ]


def _widest(memory: ArmMemory | None) -> Pooled | None:
    """Return the difference with the most missing seeds."""
    return max(memory.differences.values(), key=lambda one: one.missing, default=None) if memory is not None else None


def _over(found: Pooled | None) -> str:
    """Return the number of seeds behind a value, as text."""
    if found is None or found.seeds + found.missing < 2:
        return "one seed only"
    return f"over {found.seeds} seeds" + (f", {found.missing} missing" if found.missing else "")


def _of_runs(count: int) -> str:
    """Return the number of runs behind a value, as text."""
    return "of this run only" if count == 1 else f"of {count} runs"
