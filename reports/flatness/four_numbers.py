"""Four numbers of flatness: their values at the last evaluation with most of them, and tables by number, arm, run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.measures.catalogue import known_measures
from lossscope.landscape.verdicts.verdict import PANEL, RAW
from lossscope.reports.content import Cell, Column, Quantity, Table
from lossscope.reports.shared.evaluation_tables import MOST_RUNS, repeated_seeds
from lossscope.reports.shared.known_errors import with_known_error
from lossscope.reports.shared.loss_unit import LOSS, loss_unit
from lossscope.reports.shared.notes import LOSS_NOTE, SEEDS_NOTE
from lossscope.reports.shared.number_format import percent
from lossscope.reports.shared.quantities import last_evaluation, number, row_quantity, seed_count, summarized

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["FOUR", "LABELS", "NAMES", "RADIUS", "arms_table", "number_at_end", "numbers_table", "runs_table", "step_of"]

FOUR: Final = tuple(one.measure for one in PANEL)
LABELS: Final = {one.measure: one.label for one in PANEL} | {RAW.measure: "raw: does not count"}
NAMES: Final = {
    "adaptive_lambda_max": "adaptive λ_max",
    "adaptive_trace": "adaptive trace",
    "balanced_lambda_max": "balanced λ_max",
    "balanced_trace": "balanced trace",
    "lambda_max": "λ_max",
}
RADIUS: Final = "sigma_star"
_READ: Final = (*FOUR, RADIUS, RAW.measure, "loss")
_ARMS: Final = 4  # arms that have a column each beside the numbers
_BALANCE: Final = (
    "At the balanced point every neuron has incoming and outgoing weights of one norm, so that no rescaling is left."
)
_NUMBERS_NOTE: Final = (
    f"Relative: each weight in units of itself. {_BALANCE} Worst: the direction of the largest curvature; average: the "
    "sum over all directions. The two kinds answer different questions and may disagree. Cost: of one evaluation, in "
    "times of one gradient; numbers with one cost share it."
)
_ARM: Final = Column("arm", "arm", words=True)
_LOSS: Final = Column("loss", "train loss", LOSS, LOSS_NOTE)
_STEP: Final = Column("step", "step", "", "the last evaluation that has most of the four numbers")


@dataclass(frozen=True)
class _AtEnd:
    """Numbers of a run: its step, and each measure there with its cost in gradients."""

    step: int | None
    values: Mapping[str, Quantity]
    costs: Mapping[str, float | None]


_KNOWN: WeakKeyDictionary[Run, _AtEnd] = WeakKeyDictionary()


def step_of(run: Run) -> int | None:
    """Return the last evaluation with most of the four numbers, or the last one if none has any; None without one.

    Numbers of one row are of one step: a number that is missing there is missing, whatever it was before.
    """
    return _at_end(run).step


def number_at_end(run: Run, measure: str) -> Quantity:
    """Return a measure at the step of the four numbers, with its largest known error; the radius at its own last."""
    return _at_end(run).values.get(measure, Quantity(None))


def _at_end(run: Run) -> _AtEnd:
    """Return the numbers of a run, read once."""
    if run not in _KNOWN:
        rows = run.estimates
        rows = rows[rows["measure"].isin(_READ) & rows["tensor"].isna()]
        four = rows[rows["measure"].isin(FOUR) & rows["value"].notna()]
        counts = four.groupby("step")["measure"].nunique()
        step = int(counts.index[counts == counts.max()].max()) if len(counts) else last_evaluation(run)
        at_step = rows[rows["step"] == step].to_dict("records")
        found = {str(row["measure"]): row for row in at_step}
        radius = rows[(rows["measure"] == RADIUS) & rows["value"].notna()]
        if len(radius):
            found[RADIUS] = radius.iloc[-1].to_dict()
        values = {name: with_known_error(row_quantity(row), run, step, name) for name, row in found.items()}
        _KNOWN[run] = _AtEnd(step, values, {name: number(row["gradients"]) for name, row in found.items()})
    return _KNOWN[run]


def numbers_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return one row for each number with what it is and what leaves it as it is; none if no run has any."""
    there = [name for name in (*FOUR, RAW.measure) if any(number_at_end(run, name).value is not None for run in runs)]
    if not set(there) & set(FOUR):
        return ()
    arms = list(by_arm(runs).items())
    shown = arms if len(arms) <= _ARMS else []
    unit = f" ({loss_unit(runs)})" if loss_unit(runs) else ""
    columns = (
        Column("number", "number", "", "direction and unit in which it counts the curvature", words=True),
        Column("measure", "measure", words=True),
        *(Column(f"arm_{place}", f"{arm}{unit}") for place, (arm, _) in enumerate(shown, start=1)),
        Column("error", "largest error", "", "of one evaluation, as a share of its value"),
        Column("unchanged", "unchanged by", "", "maps of the weights that keep the function", words=True),
        Column("meaning", "is", "", "in the words of the catalogue", words=True),
        Column("gradients", "cost", "", "of one evaluation, in times of one gradient"),
    )
    rows = tuple(
        (
            LABELS[name],
            NAMES[name],
            *(_of_arm(members, name) for _, members in shown),
            _largest_error(runs, name),
            known_measures()[name].invariance,
            known_measures()[name].meaning,
            _cost(runs, name),
        )
        for name in there
    )
    several = " Several runs: median [range]." if len(runs) > 1 and shown else ""
    return (Table("numbers", "The four numbers at the end", columns, rows, f"{_NUMBERS_NOTE}{several}"),)


def arms_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return one row for each arm with medians and ranges of the numbers; none for one run, which has a row of its own.

    Its columns are few, so that this table alone is the text of many runs.
    """
    if len(runs) < 2:
        return ()
    there = _there(runs)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (arm, seed_count(members), summarized(_loss(run) for run in members), *(_median(members, one) for one in there))
        for arm, members in by_arm(runs).items()
    )
    columns = (_ARM, Column("seeds", "seeds"), _LOSS, *map(_column, there))
    note = " ".join([*repeated_seeds(runs), SEEDS_NOTE])
    return (Table("arms", "Each arm at its end: median [range over seeds]", columns, rows, note),)


def runs_table(runs: Sequence[Run], more: Sequence[tuple[Column, Callable[[Run], Cell]]] = ()) -> Table:
    """Return one row for each run, however many, with its numbers at one step and the loss there.

    Args:
        runs: The runs; ordered by arm.
        more: Further columns, each with a function that returns the cell of a run.
    """
    there = _there(runs)
    columns = (Column("run", "run", words=True), _ARM, _STEP, _LOSS, *map(_column, there), *(one for one, _ in more))
    plain = partial(_without_interval, many=len(runs) > MOST_RUNS)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            run.name,
            arm,
            step_of(run),
            _loss(run),
            *(plain(number_at_end(run, name)) for name in there),
            *(cell(run) for _, cell in more),
        )
        for arm, members in by_arm(runs).items()
        for run in members
    )
    return Table("runs", "Each run at its end", columns, rows, LOSS_NOTE)


def _there(runs: Sequence[Run]) -> list[str]:
    """Return the numbers that a run has, the raw one last; the adaptive trace if none has any."""
    known = {str(name) for run in runs for name in run.probes["measure"].unique()}
    return [one for one in (*FOUR, RADIUS, RAW.measure) if one in known] or ["adaptive_trace"]


def _column(measure: str) -> Column:
    """Return the column of a measure; its explanation is that of the catalogue."""
    if measure == RADIUS:
        return Column(measure, "σ*", "1")
    return Column(measure, NAMES[measure], LOSS)


def _loss(run: Run) -> Quantity:
    """Return the loss at the step of the numbers; its rounding limits the digits."""
    found = number_at_end(run, "loss")
    return Quantity(found.value, known_error=found.error)


def _median(runs: Iterable[Run], measure: str) -> Quantity:
    """Return the median and range of a number."""
    return summarized(number_at_end(run, measure) for run in runs)


def _of_arm(runs: Sequence[Run], measure: str) -> Quantity:
    """Return the number of the only run of an arm with its error, of several their median and range."""
    return number_at_end(runs[0], measure) if len(runs) == 1 else _median(runs, measure)


def _without_interval(found: Quantity, *, many: bool) -> Quantity:
    """Return a number of one of many runs with its error alone, so that a row is a line."""
    return Quantity(found.value, error=found.error) if many else found


def _largest_error(runs: Sequence[Run], measure: str) -> str | None:
    """Return the largest error of a number among runs, as a share of its value."""
    found = [number_at_end(run, measure) for run in runs]
    shares = [abs(one.error / one.value) for one in found if one.value and one.error is not None]
    return percent(max(shares)) if shares else None


def _cost(runs: Sequence[Run], measure: str) -> Quantity:
    """Return the cost of a number at the end, in gradients: the median over runs."""
    known = [Quantity(one) for run in runs if (one := _at_end(run).costs.get(measure)) is not None]
    return Quantity(summarized(known).value, known_error=1.0) if known else Quantity(None)
