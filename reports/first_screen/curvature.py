"""Sharpness in a sentence: at the end, against its threshold over the whole run, and compared with the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.diagnosis.curvature import EDGE, UNCONVERGED, edge_of
from lossscope.landscape.analysis.diagnosis.rules import alarmed
from lossscope.landscape.analysis.divergence import divergence_of
from lossscope.landscape.analysis.series import Series, probe_series
from lossscope.reports.content import Quantity, Statement
from lossscope.reports.first_screen.arms import joined_arms, measured, of_arm, phrase, spread
from lossscope.reports.shared.known_errors import known_series
from lossscope.reports.shared.loss_unit import loss_unit
from lossscope.reports.shared.number_format import plain
from lossscope.reports.shared.provenance import listed
from lossscope.reports.shared.quantities import at_last_evaluation, last_evaluation

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["change", "curvature", "factor", "missed", "unconverged"]

# measures of sharpness, the first that a run recorded is told
_SHARPNESS: Final = (("lambda_max", "λ_max"), ("trace", "the trace of the Hessian"), ("adaptive_trace", "Σ θ²H"))
_OF_THE_LOSS: Final = {"lambda_max": "the sharpness "}  # what a measure is, if its name does not say
_FLATTER: Final = "flatter"
_SHORT: Final = {"lambda_max": "λ_max", "preconditioned_sharpness": "S_P", "batch_sharpness": "batch sharpness"}


def curvature(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the statements on sharpness; none if no run measured it."""
    kind = next((one for one in _SHARPNESS if of_arm(runs, partial(at_last_evaluation, measure=one[0]))), None)
    if kind is None:
        return ()
    return (*_at_the_end(runs, *kind), *_edge(runs), *change(runs, *kind))


def _at_the_end(runs: Sequence[Run], measure: str, words: str) -> tuple[Statement, ...]:
    """Return the sharpness at the last evaluation, with its largest known error."""
    found = of_arm(runs, lambda run: _at_end(run, measure))
    steps = {step for run in runs if (step := last_evaluation(run)) is not None}
    last = max(steps)
    when = "the last evaluation of the curvature"
    at = f"At step {last}, {when}," if len(steps) == 1 else f"At {when} of each run"
    unseen = any((lost := divergence_of(run)) is not None and lost.step > last for run in runs)
    tail = "; nothing later is known" if unseen else ""
    told = f"{at} {_OF_THE_LOSS.get(measure, '')}{words} is {phrase(found, loss_unit(runs))}{tail}."
    return (Statement(told, "look" if tail else "fine", measure),)


def _at_end(run: Run, measure: str) -> Quantity:
    """Return a measure at the last evaluation with its largest known error, without its interval."""
    found = at_last_evaluation(run, measure)
    return Quantity(found.value, error=found.error)


@dataclass(frozen=True)
class _Edge:
    """Ratio to the threshold over a run."""

    run: str
    figure: str
    largest: Quantity
    step: int
    last: Quantity
    facts: str  # the sharpness, its threshold and the learning rate there, as numbers; "" if unknown


def _edge(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the ratio of sharpness to the threshold of the step size, over the whole history of each arm."""
    phrases, highest, figure = dict[str, str](), 0.0, ""
    for arm, members in by_arm(runs).items():
        found = [one for run in members if (one := _ratio(run, edge_of(run))) is not None]
        if not found:
            continue
        top = max(found, key=lambda one: one.largest.value or 0.0)
        where = f" at step {top.step}" + (f" of {top.run}" if len(members) > 1 else "")
        last = measured(spread([one.last for one in found]))
        phrases[arm] = f"at its peak {measured(top.largest)}{where}{top.facts}"
        phrases[arm] += f", {last} at the end" if top.largest.value != top.last.value or len(members) > 1 else ""
        if (top.largest.value or 0.0) >= highest:
            highest, figure = top.largest.value or 0.0, top.figure
    if not phrases:
        return ()
    tail = "; above 1 steps are expected to raise the loss, by a second-order estimate" if highest >= 1 else ""
    words = f"Sharpness as a share of what steps of this size can stand (1): {joined_arms(phrases)}{tail}."
    return (Statement(words, "look" if alarmed(runs, EDGE) else "fine", figure),)


def _ratio(run: Run, ratio: tuple[str, Series] | None) -> _Edge | None:
    """Return the largest and the last ratio of a run, of a quantity and its ratios; None without any."""
    if ratio is None:
        return None
    figure, series = ratio
    known = known_series(run, figure)
    series = replace(series, error=np.abs(series.y / known.y) * known.error)
    places = np.flatnonzero(np.isfinite(series.y))
    if not len(places):
        return None
    top = places[int(np.argmax(series.y[places]))]
    largest, step = _at(series, int(top)), int(series.x[top])
    facts = _facts(run, figure, _at(known, int(top)), largest, step)
    return _Edge(run.name, figure, largest, step, _at(series, int(places[-1])), facts)


def _facts(run: Run, measure: str, value: Quantity, ratio: Quantity, step: int) -> str:
    """Return a measure, its threshold and the learning rate at a step in brackets; "" if none of them is known."""
    found = []
    if measure in _SHORT and value.value and ratio.value:
        found.append(f"{_SHORT[measure]} {measured(value)}, threshold {plain(value.value / ratio.value)}")
    at, rates = run.numbers("steps", "step", "lr")
    place = int(np.searchsorted(at, step, side="right")) - 1
    if len(at) and math.isfinite(rates[max(place, 0)]):
        found.append(f"learning rate {rates[max(place, 0)]:.6g}")
    return f" ({', '.join(found)})" if found else ""


def _at(series: Series, place: int) -> Quantity:
    """Return a value of a series with its error."""
    error = float(series.error[place])
    return Quantity(float(series.y[place]), error=error if math.isfinite(error) else None)


def change(runs: Sequence[Run], measure: str, words: str) -> tuple[Statement, ...]:
    """Return the change of sharpness from the first evaluation to the last; none with one evaluation."""
    phrases = dict[str, str]()
    for arm, members in by_arm(runs).items():
        changes = [one for run in members if (one := factor(run, measure)) is not None]
        if changes:
            phrases[arm] = _change_in_words(changes)
    if not phrases:
        return ()
    falls = all(_loss_fell(run) for run in runs)
    flatter = any(words.startswith(_FLATTER) for words in phrases.values())
    tail = "; the loss fell too, which alone makes it smaller" if falls and flatter else ""
    found = [probe_series(run, measure) for run in runs]
    first = sorted({int(one.x[np.isfinite(one.y)][0]) for one in found if np.isfinite(one.y).any()})
    since = f"step {first[0]}" if len(first) == 1 else "its first evaluation"
    return (
        Statement(f"Compared with {since}, the loss is {joined_arms(phrases)}, by {words}{tail}.", "fine", measure),
    )


def _loss_fell(run: Run) -> bool:
    """Return True if the loss on the fixed data fell to less than half between the first and the last evaluation."""
    losses = probe_series(run, "loss").y
    finite = losses[np.isfinite(losses)]
    return len(finite) > 1 and bool(finite[-1] < 0.5 * finite[0])


def _change_in_words(changes: Sequence[Quantity]) -> str:
    """Return flatter, sharper or the same, with the factor of the change."""
    ratio = spread(changes)
    assert ratio.value is not None
    low, high = (ratio.low or 0.0, ratio.high or 0.0) if len(changes) > 1 else _ends(ratio)
    if low <= 1 <= high:
        several = f" over {len(changes)} runs" if len(changes) > 1 else ""
        return f"the same within its errors{several} (factor {measured(ratio)})"
    if ratio.value < 1:
        return f"{_FLATTER} by a factor of {measured(_inverse(ratio))}"
    return f"sharper by a factor of {measured(ratio)}"


def _ends(ratio: Quantity) -> tuple[float, float]:
    """Return the interval of a ratio by its error."""
    assert ratio.value is not None
    error = ratio.error or 0.0
    return ratio.value - error, ratio.value + error


def _inverse(ratio: Quantity) -> Quantity:
    """Return one over a ratio, with its error and range."""
    assert ratio.value is not None
    error = None if ratio.error is None else ratio.error / ratio.value**2
    low, high = (None if one is None else 1 / one for one in (ratio.high, ratio.low))
    return Quantity(1 / ratio.value, error=error, low=low, high=high)


def factor(run: Run, measure: str) -> Quantity | None:
    """Return the last value over the first, with its error; None unless both are positive."""
    series = known_series(run, measure)
    places = np.flatnonzero(np.isfinite(series.y))
    if len(places) < 2:
        return None
    first, last = _at(series, int(places[0])), _at(series, int(places[-1]))
    if not (first.value and last.value and first.value > 0 and last.value > 0):
        return None
    ratio = last.value / first.value
    share = (first.error or 0.0) / first.value + (last.error or 0.0) / last.value
    return Quantity(ratio, error=ratio * share if share else None)


def unconverged(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the eigenvalues at the end that did not reach the accuracy that was asked."""
    named = [run.name for run in runs if alarmed([run], UNCONVERGED)]
    if not named:
        return ()
    words = f"λ_max of {listed(named)} did not reach its accuracy at the last evaluation: its error is as stated."
    return (Statement(words, "look", "lambda_max"),)


def missed(run: Run, measure: str) -> bool:
    """Return True if a measure at its last evaluation missed its bound."""
    rows = run.estimates
    rows = rows[(rows["measure"] == measure) & rows["tensor"].isna()].dropna(subset=["converged"])
    return len(rows) > 0 and not bool(rows.iloc[-1]["converged"])
