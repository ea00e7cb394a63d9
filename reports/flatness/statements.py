"""First screen of the flatness report: the four numbers in plain words, their change, rest, and the guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.divergence import divergence_of
from lossscope.landscape.verdicts.verdict import RAW
from lossscope.reports.content import Quantity, Statement
from lossscope.reports.first_screen.arms import joined_arms, measured, of_arm, phrase, spread
from lossscope.reports.first_screen.curvature import change, factor, missed
from lossscope.reports.flatness.against_loss import figure_of
from lossscope.reports.flatness.four_numbers import FOUR, NAMES, RADIUS, number_at_end, step_of
from lossscope.reports.flatness.rest import NEGATIVE, Rest
from lossscope.reports.shared.loss_unit import loss_unit
from lossscope.reports.shared.number_format import percent, plain
from lossscope.reports.shared.provenance import listed
from lossscope.reports.shared.quantities import row_quantity

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["statements"]

Way = Literal["flatter", "sharper", ""]

_RISE: Final = 0.1  # of the loss, at which the radius ends
_GUARD: Final = "guard_"


@dataclass(frozen=True)
class _Kind:
    """Pair of numbers that one sentence tells: the worst direction and the average."""

    begin: str
    worst: str
    average: str


_KINDS: Final = (
    _Kind("With each weight in units of itself", "adaptive_lambda_max", "adaptive_trace"),
    _Kind("After balancing the layers, which keeps the function", "balanced_lambda_max", "balanced_trace"),
)


def statements(runs: Sequence[Run], rests: Mapping[str, Rest]) -> tuple[Statement, ...]:
    """Return the statements on flatness, each with its numbers.

    Args:
        runs: The runs.
        rests: Rest of each run by name.
    """
    told = [_kind(runs, kind) for kind in _KINDS]
    first = next((name for name in ("adaptive_trace", *FOUR) if of_arm(runs, partial(number_at_end, measure=name))), "")
    return (
        *(one for some in told for one in some),
        *_radius(runs),
        *(change(runs, first, f"the {NAMES[first]}") if first else ()),
        *_raw(runs),
        *_rest(runs, rests),
        *_guard(runs),
        *_unconverged(runs),
    )


def _kind(runs: Sequence[Run], kind: _Kind) -> tuple[Statement, ...]:
    """Return the worst direction and the average of one kind of number; none if no run has either."""
    parts = [
        f"{phrase(found, loss_unit(runs))} {where} ({NAMES[name]})"
        for name, where in ((kind.worst, "in the worst direction"), (kind.average, "over all directions together"))
        if (found := of_arm(runs, partial(_with_error, measure=name)))
    ]
    if not parts:
        return ()
    steps = {step for run in runs if (step := step_of(run)) is not None}
    when = f" at step {max(steps)}" if len(steps) == 1 else ""
    measure = kind.worst if of_arm(runs, partial(number_at_end, measure=kind.worst)) else kind.average
    lost = any((one := divergence_of(run)) is not None and one.step > (step_of(run) or 0) for run in runs)
    tail = "; nothing later is known of what diverged" if lost else ""
    words = f"{kind.begin}, curvature{when} is {', and '.join(parts)}{tail}."
    return (Statement(words, "look" if lost else "fine", figure_of(measure)),)


def _with_error(run: Run, measure: str) -> Quantity:
    """Return a number at the end with its largest known error, without its interval."""
    found = number_at_end(run, measure)
    return Quantity(found.value, error=found.error)


def _radius(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the noise on every weight that raises the loss by 0.1; none if no run measured it."""
    found = of_arm(runs, lambda run: _in_percent(number_at_end(run, RADIUS)))
    if not found:
        return ()
    words = f"Each weight may be off by {phrase(found, '%')} of itself before the mean loss rises by {_RISE:g} (σ*)."
    return (Statement(words, "fine", "noise_curve"),)


def _in_percent(found: Quantity) -> Quantity:
    """Return a share as a percentage with its error."""
    value, error = (None if one is None else 100 * one for one in (found.value, found.error))
    return Quantity(value, error=error)


def _raw(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the arms in which raw λ_max changed the other way than all of the four numbers; none without any."""
    against = []
    for arm, members in by_arm(runs).items():
        ways = {way for name in FOUR if (way := _way(members, name)) is not None}
        raw = _way(members, RAW.measure)
        if len(ways) == 1 and raw and (four := ways.pop()) and raw != four:
            against.append(f"{arm} (raw: {raw}, these: {four})")
    if not against:
        return ()
    words = f"Raw λ_max changed the other way than these numbers in {listed(against)}: a rescaling of weights moves it"
    return (Statement(f"{words}, so it does not count.", "look", figure_of(RAW.measure)),)


def _way(runs: Sequence[Run], measure: str) -> Way | None:
    """Return the way in which a measure changed in all runs; "" if they differ, None if no run has a change."""
    factors = [one.value for run in runs if (one := factor(run, measure)) is not None and one.value is not None]
    if not factors:
        return None
    return "flatter" if max(factors) < 1 else "sharper" if min(factors) > 1 else ""


def _rest(runs: Sequence[Run], rests: Mapping[str, Rest]) -> tuple[Statement, ...]:
    """Return if training ended at rest, not of diverged runs; "minimum" is said of those that earned it only."""
    kept = [run for run in runs if not rests[run.name].diverged]
    by_word = {word: [run for run in kept if rests[run.name].earned is word] for word in (True, False, None)}
    told = []
    if earned := by_word[True]:
        first = rests[earned[0].name]
        words = (
            f"{_subject(runs, earned)} ended in a minimum as far as was measured: the gradient is "
            f"{_norm(first, runs)}, and the share of negative curvature below {percent(NEGATIVE)}"
        )
        told.append(Statement(f"{words}.", "fine"))
    if moving := by_word[False]:
        steep = next((one for one in moving if rests[one.name].steep), None)
        run = moving[0] if steep is None else steep
        reason = _slope(rests[run.name], runs) if steep is not None else _saddle(rests[run.name])
        of = f" (in {run.name})" if len(runs) > 1 else ""
        told.append(Statement(f"{_subject(runs, moving)} did not end at rest: {reason}{of}.", "look"))
    if unknown := by_word[None]:
        told.append(Statement(_not_known(runs, unknown, rests), "fine"))
    return tuple(told)


def _subject(runs: Sequence[Run], some: Sequence[Run]) -> str:
    """Return the runs of a sentence."""
    if len(runs) == 1:
        return "Training"
    return f"All {len(runs)} runs" if len(some) == len(runs) else f"{len(some)} of {len(runs)} runs"


def _norm(rest: Rest, runs: Sequence[Run]) -> str:
    """Return the gradient's norm against its sampling noise."""
    unit = loss_unit(runs)
    dimension = f" {unit}" if unit else ""
    return f"{measured(rest.gradient)} against {plain(rest.noise, 2)}{dimension} of sampling noise"


def _slope(rest: Rest, runs: Sequence[Run]) -> str:
    """Return the reason why a gradient shows that training was under way."""
    return f"the gradient over the second half of the steps is {_norm(rest, runs)}"


def _saddle(rest: Rest) -> str:
    """Return the reason why curvature shows that a direction leads down."""
    share = measured(replace(rest.mass, error=None))
    return f"negative curvature is {share} of all curvature, so some direction leads down"


def _not_known(runs: Sequence[Run], unknown: Sequence[Run], rests: Mapping[str, Rest]) -> str:
    """Return what is missing to say whether runs ended at rest."""
    some = [rests[run.name] for run in unknown]
    lacking = [
        what
        for what, missing in (
            ("gradients of minibatches", [one.noise is None for one in some]),
            ("the negative mass", [one.mass.value is None for one in some]),
        )
        if all(missing)
    ]
    who = "training" if len(runs) == 1 else _subject(runs, unknown).replace("All", "all")
    begin = f"Whether {who} ended at rest is not known"
    if lacking:
        return f"{begin} without {' and '.join(lacking)}."
    return f"{begin}: the errors of the gradient and of the negative mass are too wide to tell."


def _guard(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return what a random rescaling did to the numbers and to raw λ_max; none if no run has the guard."""
    moved = [(run.name, name, one) for run in runs for name in FOUR if _leaves_one(one := _ratio(run, name))]
    raw = of_arm(runs, partial(_ratio, measure=RAW.measure))
    known = [one for run in runs for name in FOUR if (one := _ratio(run, name)).value is not None]
    if moved:
        name, measure, ratio = moved[0]
        words = (
            f"A rescaling that keeps the function changed the {NAMES[measure]} of {name} by a factor of "
            f"{measured(ratio)}"
        )
        return (Statement(f"{words}: that number is not to be trusted here.", "act"),)
    if not known:
        return ()
    phrases = {arm: f"multiplies λ_max by {measured(spread(some))}" for arm, some in raw.items()}
    tail = f" and {joined_arms(phrases)}" if phrases else ""
    return (Statement(f"A random rescaling that keeps the function leaves these numbers as they are{tail}.", "fine"),)


def _unconverged(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the numbers at the end that did not reach the accuracy that was asked, in one statement."""
    found = {name: [run.name for run in runs if missed(run, name)] for name in FOUR}
    found = {name: some for name, some in found.items() if some}
    if not found:
        return ()
    names, of = listed([NAMES[name] for name in found]), dict.fromkeys(run for some in found.values() for run in some)
    told = f"At the last evaluation of {listed(list(of))} the accuracy that was asked was not reached ({names})"
    return (Statement(f"{told}: errors are as stated.", "look", figure_of(next(iter(found)))),)


def _ratio(run: Run, measure: str) -> Quantity:
    """Return the number after a random rescaling over that before, at the last step that has it."""
    rows = run.estimates
    rows = rows[(rows["measure"] == f"{_GUARD}{measure}") & rows["tensor"].isna()]
    return row_quantity(rows.iloc[-1].to_dict()) if len(rows) else Quantity(None)


def _leaves_one(ratio: Quantity) -> bool:
    """Return True for a ratio that is not 1 within its bounds."""
    if ratio.value is None or ratio.error is None:
        return False
    low = ratio.value - ratio.error if ratio.low is None else ratio.low
    high = ratio.value + ratio.error if ratio.high is None else ratio.high
    return low > 1 or high < 1
