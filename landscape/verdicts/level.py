"""Values of a run at a training loss: first crossing, log-log interpolation, and the cost up to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from lossscope.landscape.verdicts.verdict import PANEL, RAW, Reason

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = [
    "Crossing",
    "Evaluations",
    "Value",
    "crossing",
    "evaluations_of",
    "loss_name",
    "lowest_level",
    "spent",
    "value",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
LossName: TypeAlias = Literal["train_loss", "loss"]
_LOSSES: Final[tuple[LossName, LossName]] = ("train_loss", "loss")
WIDE: Final = 8.0  # ratio of the two losses around a level from which it is noted
_TWO_SIDED: Final = 1.959963984540054  # half widths of 95 % intervals over their standard error
_CURVATURE: Final = (*(one.measure for one in PANEL), RAW.measure, "trace")
_READ: Final = {*_CURVATURE, "loss", "train_loss", "test_loss", "sigma_star"}
_KNOWN: WeakKeyDictionary[Run, Evaluations] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Evaluations:
    """Numbers of the whole model at the steps at which curvature was evaluated, nan where missing."""

    run: str
    steps: FloatArray  # (n,) ascending
    values: dict[str, FloatArray]  # (n,) by measure
    errors: dict[str, FloatArray]  # (n,) relative standard error by measure
    unconverged: dict[str, npt.NDArray[np.bool_]]  # (n,) by measure: the asked accuracy was missed

    def losses(self, name: LossName) -> FloatArray:
        """Return the training loss at each step."""
        return self.values.get(name, np.full(len(self.steps), math.nan))


@dataclass(frozen=True)
class Crossing:
    """The two evaluations around a level, and the weight of the later one."""

    before: int  # index
    after: int
    weight: float
    step: float  # interpolated
    ratio: float  # of the two losses


@dataclass(frozen=True)
class Value:
    """A measure at a level."""

    log: float
    error: float  # relative standard error; nan if unknown
    unconverged: bool


def evaluations_of(run: Run) -> Evaluations:
    """Return the curvature evaluations of a run; where curvature was never measured, the steps with a loss."""
    if run not in _KNOWN:
        _KNOWN[run] = _read(run)
    return _KNOWN[run]


def loss_name(runs: Iterable[Run]) -> LossName:
    """Return the training loss that all runs have at their evaluations: `train_loss`, else `loss`.

    A run that ended before its first evaluation has neither, and no say.
    """
    evaluations = [evaluations_of(run) for run in runs]
    there = {name: [bool(np.isfinite(one.losses(name)).any()) for one in evaluations] for name in _LOSSES}
    return "loss" if any(loss and not train for train, loss in zip(*there.values(), strict=True)) else "train_loss"


def lowest_level(runs: Sequence[Run], name: LossName) -> float | None:
    """Return the lowest training loss that all runs reached, rounded up to one significant digit.

    None if a run recorded no loss, or one that is not above 0.
    """
    reached = [_finite_min(evaluations_of(run).losses(name)) for run in runs]
    if not reached or not all(0 < one < math.inf for one in reached):
        return None
    return rounded_up(max(reached))


def rounded_up(number: float) -> float:
    """Return a positive number rounded up to one significant digit."""
    exact = Decimal(repr(float(number)))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted()), rounding=ROUND_CEILING))


def crossing(run: Run, level: float, name: LossName) -> Crossing | Reason:
    """Return where a run first falls to a training loss, or the reason that it has no value there.

    Args:
        run: Any run.
        level: Training loss, above 0.
        name: The training loss to read. Evaluations at which it is missing or infinite do not exist.
    """
    evaluations = evaluations_of(run)
    losses = evaluations.losses(name)
    known = np.flatnonzero(np.isfinite(losses))
    if not len(known):
        return Reason("NOT_MEASURED", "no training loss was recorded at an evaluation", (run.name,))
    below = np.flatnonzero(losses[known] <= level)
    if not len(below):
        return Reason("MISSING_LEVEL", f"lowest {_finite_min(losses):.2g}", (run.name,))
    k = int(below[0])
    if k == 0:
        return Reason("MISSING_LEVEL", f"below it at the first evaluation, {losses[known[0]]:.2g}", (run.name,))
    before, after = int(known[k - 1]), int(known[k])
    high, low = float(losses[before]), float(losses[after])
    if low <= 0:
        return Reason("NOT_POSITIVE", f"training loss {low:.2g} at step {evaluations.steps[after]:.0f}", (run.name,))
    weight = (math.log(high) - math.log(level)) / (math.log(high) - math.log(low))
    step = (1 - weight) * evaluations.steps[before] + weight * evaluations.steps[after]
    return Crossing(before, after, weight, float(step), high / low)


def value(run: Run, at: Crossing, measure: str) -> Value | Reason:
    """Return a measure at a crossing, interpolated in logarithms, or the reason that there is none."""
    evaluations = evaluations_of(run)
    numbers = evaluations.values.get(measure)
    ends = (at.before, at.after)
    if numbers is None or not all(math.isfinite(numbers[k]) for k in ends):
        steps = " or ".join(
            f"{evaluations.steps[k]:.0f}" for k in ends if numbers is None or not np.isfinite(numbers[k])
        )
        return Reason("NOT_MEASURED", f"{measure} is missing at step {steps}", (run.name,))
    if any(numbers[k] <= 0 for k in ends):
        worst = min(ends, key=lambda k: float(numbers[k]))
        text = f"{measure} is {numbers[worst]:.2g} at step {evaluations.steps[worst]:.0f}"
        return Reason("NOT_POSITIVE", text, (run.name,))
    weights = (1 - at.weight, at.weight)
    log = sum(weight * math.log(numbers[k]) for weight, k in zip(weights, ends, strict=True))
    errors = evaluations.errors[measure]
    error = math.hypot(*(weight * float(errors[k]) for weight, k in zip(weights, ends, strict=True)))
    return Value(log, error, bool(evaluations.unconverged[measure][list(ends)].any()))


def plain_value(run: Run, at: Crossing, measure: str) -> float:
    """Return a measure at a crossing, linear in the logarithm of the loss; nan if it is missing."""
    numbers = evaluations_of(run).values.get(measure)
    if numbers is None:
        return math.nan
    return float((1 - at.weight) * numbers[at.before] + at.weight * numbers[at.after])


def spent(run: Run, step: float) -> tuple[float, float]:
    """Return the gradients and the ascents that a run took up to a step, interpolated; nan where not recorded."""
    steps = run.steps
    if not len(steps):
        return math.nan, math.nan
    synced = _numbers(steps, "synced")
    passes = _numbers(steps, "passes")
    passes = np.where(np.isnan(passes), 1 + synced, passes)
    at = np.concatenate([[0.0], steps["step"].to_numpy(dtype=np.float64)])
    both = [float(np.interp(step, at, np.concatenate([[0.0], np.cumsum(one)]))) for one in (passes, synced)]
    return both[0], both[1]


def _read(run: Run) -> Evaluations:
    """Read the evaluations of a run."""
    rows = run.estimates
    rows = rows[rows["tensor"].isna().to_numpy() & rows["measure"].isin(_READ).to_numpy()]
    columns = {name: _numbers(rows, name) for name in ("step", "value", "stderr", "low", "high")}
    measures, known = rows["measure"].to_numpy(dtype=object), np.isfinite(columns["value"])
    missed = known & ~rows["converged"].fillna(value=True).to_numpy(dtype=bool)
    curved = known & np.isin(measures.astype(str), _CURVATURE)
    steps = np.unique(columns["step"][curved if curved.any() else known])
    columns["error"] = _relative_errors(columns)
    known &= np.isin(columns["step"], steps)
    masks = {str(measure): known & (measures == measure) for measure in dict.fromkeys(measures[known])}
    places = {measure: np.searchsorted(steps, columns["step"][mask]) for measure, mask in masks.items()}

    def placed(numbers: FloatArray) -> dict[str, FloatArray]:
        return {measure: _placed(places[measure], numbers[mask], len(steps)) for measure, mask in masks.items()}

    off = {measure: one == 1 for measure, one in placed(missed.astype(np.float64)).items()}
    return Evaluations(run.name, steps, placed(columns["value"]), placed(columns["error"]), off)


def _relative_errors(columns: dict[str, FloatArray]) -> FloatArray:
    """Return relative standard errors: the recorded ones, else those of an interval of the same half width."""
    half = (columns["high"] - columns["low"]) / 2
    error = np.where(np.isnan(columns["stderr"]), half / _TWO_SIDED, columns["stderr"])
    with np.errstate(divide="ignore", invalid="ignore"):
        found: FloatArray = error / np.abs(columns["value"])
    return found


def _placed(places: npt.NDArray[np.int64], numbers: FloatArray, size: int) -> FloatArray:
    """Return numbers at places of an array, nan elsewhere."""
    found = np.full(size, math.nan)
    found[places] = numbers
    return found


def _numbers(rows: pd.DataFrame, column: str) -> FloatArray:
    """Return a column as float64, with nan for null."""
    return rows[column].to_numpy(dtype=np.float64, na_value=math.nan)


def _finite_min(numbers: FloatArray) -> float:
    """Return the least finite number; infinity if there is none."""
    finite = numbers[np.isfinite(numbers)]
    return float(finite.min()) if len(finite) else math.inf
