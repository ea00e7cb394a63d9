"""Arrays out of runs, ready to be tabled or drawn: one run's series, and one arm's band over its seeds.

Nothing is smoothed or filled. A number that is missing or not finite is nan, and nan is drawn as a gap. Of one that was
measured more than once the row that counts is taken: `Run.estimates`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = [
    "Band",
    "Series",
    "against_loss",
    "by_arm",
    "evaluations",
    "first_step",
    "loss_at",
    "over_seeds",
    "probe_series",
    "spectrum_series",
    "step_series",
    "synced_series",
    "tensor_series",
]

FloatArray: TypeAlias = NDArray[np.float64]
_POINTS: Final = 600


@dataclass(frozen=True)
class Series:
    """One run's numbers, ordered by step."""

    run: str
    x: FloatArray  # (n,) steps, or the loss for `against_loss`
    y: FloatArray  # (n,) nan is a gap
    error: FloatArray  # (n,) half width of the measurement's own bound; nan where it has none


@dataclass(frozen=True)
class Band:
    """One arm over its seeds. The seeds' range and the measurement's error are kept apart."""

    arm: str
    seeds: int  # runs with at least one number
    x: FloatArray  # (n,)
    median: FloatArray  # (n,)
    low: FloatArray  # (n,) smallest seed
    high: FloatArray  # (n,) largest seed
    error: FloatArray  # (n,) widest measurement error among the seeds; nan where there is none
    steps_per_point: int  # 1 unless the steps were gathered, then how many stand behind one point


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each arm, arms in the order in which they first appear."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(str(run.manifest.get("arm") or run.name), []).append(run)
    return arms


def evaluations(run: Run) -> FloatArray:
    """The steps at which curvature was measured, ascending; empty where it never was."""
    return np.unique(_numbers(run.estimates, "step"))


def step_series(run: Run, column: str) -> Series:
    """A column of the steps table, one number per step."""
    return _plain(run, run.steps, column)


def synced_series(run: Run, column: str) -> Series:
    """A column of the steps table at the steps that took a second, adversarial gradient.

    The column is null at other steps, and at those the instruments did not look at (where the weights' norm is null
    too). That is by design and no gap, so these steps are left out.
    """
    steps = run.steps
    taken = steps["synced"].eq(True).fillna(False).astype(bool) & steps["weight_norm"].notna()
    return _plain(run, steps[taken], column)


def probe_series(run: Run, measure: str) -> Series:
    """A measure of the whole model, one number per evaluation, with half the width of its bound as error."""
    rows = run.estimates
    rows = rows[(rows["measure"] == measure) & rows["tensor"].isna()]
    half = (_numbers(rows, "high") - _numbers(rows, "low")) / 2
    return Series(run.name, _numbers(rows, "step"), _finite(_numbers(rows, "value")), _finite(half))


def tensor_series(run: Run, column: str, *, track: str = "matrix") -> Series:
    """The mean of a column over the tensors of a track, one number per step."""
    return _mean_by_step(run, run.tensors[run.tensors["track"] == track], column)


def spectrum_series(run: Run, kind: str, column: str) -> Series:
    """The mean of a column over the spectra of one object (`kind`), one number per step."""
    return _mean_by_step(run, run.spectra[run.spectra["object"] == kind], column)


def loss_at(run: Run, steps: FloatArray) -> FloatArray:
    """The training loss on the fixed data of curvature after the given steps, (n,) to (n,); nan where not measured."""
    found = probe_series(run, "loss")
    losses = dict(zip(found.x, found.y, strict=True))
    return np.array([losses.get(step, np.nan) for step in steps], dtype=np.float64)


def against_loss(run: Run, measure: str) -> Series:
    """A measure over the training loss it was taken at, in the order of training.

    Curvature depends on the loss level (a saturated softmax has none), so two runs are sampled side by side
    at equal loss, not at equal step.
    """
    series = probe_series(run, measure)
    return Series(run.name, loss_at(run, series.x), series.y, series.error)


def over_seeds(arm: str, series: Sequence[Series], *, points: int = _POINTS) -> Band:
    """The median and the range over an arm's seeds, at every step that any of them has.

    Args:
        arm: name of the arm.
        series: one per seed; a seed that ended early simply stops taking part.
        points: most points to return. Longer series are gathered: a point then holds the median and the range of
            `steps_per_point` neighboring steps of all seeds, so that no extreme disappears.

    Returns:
        The band, x ascending. A step at which no seed has a number is nan.
    """
    import pandas as pd

    with_numbers = [one for one in series if np.isfinite(one.y).any()]
    frame = pd.DataFrame(
        {
            "x": _joined([one.x for one in with_numbers]),
            "y": _joined([one.y for one in with_numbers]),
            "error": _joined([one.error for one in with_numbers]),
        }
    )
    steps = np.unique(frame["x"].to_numpy())
    gathered = max(1, int(np.ceil(len(steps) / points)))
    frame["point"] = np.searchsorted(steps, frame["x"].to_numpy()) // gathered
    groups = frame.groupby("point", sort=True)
    return Band(
        arm=arm,
        seeds=len(with_numbers),
        x=groups["x"].max().to_numpy(dtype=np.float64),
        median=groups["y"].median().to_numpy(dtype=np.float64),
        low=groups["y"].min().to_numpy(dtype=np.float64),
        high=groups["y"].max().to_numpy(dtype=np.float64),
        error=groups["error"].max().to_numpy(dtype=np.float64),
        steps_per_point=gathered,
    )


def _plain(run: Run, rows: pd.DataFrame, column: str) -> Series:
    """A column as a series without measurement error."""
    values = _finite(_numbers(rows, column))
    return Series(run.name, _numbers(rows, "step"), values, np.full(len(values), np.nan))


def _mean_by_step(run: Run, rows: pd.DataFrame, column: str) -> Series:
    """The mean over the rows of each step, missing ones left out."""
    values = rows.assign(_value=_finite(_numbers(rows, column))).groupby("step", sort=True)["_value"].mean()
    return Series(
        run.name,
        values.index.to_numpy(dtype=np.float64),
        values.to_numpy(dtype=np.float64),
        np.full(len(values), np.nan),
    )


def _numbers(rows: pd.DataFrame, column: str) -> FloatArray:
    """A column as float64, null as nan."""
    return rows[column].to_numpy(dtype=np.float64, na_value=np.nan)


def _finite(values: FloatArray) -> FloatArray:
    """The values, with what is not finite as nan."""
    return np.where(np.isfinite(values), values, np.nan)


def _joined(parts: Sequence[FloatArray]) -> FloatArray:
    """The parts one after another; empty for none."""
    return np.concatenate(parts) if parts else np.empty(0)


def first_step(run: Run, column: str, level: float) -> int | None:
    """The first recorded step at which a column of the steps table is at least `level`; None if it never was.

    Grokking is told this way: `first_step(run, "test_accuracy", 0.99)`. It is known to the step only as
    finely as the column was measured.
    """
    steps = run.steps
    reached = steps.loc[steps[column] >= level, "step"]
    return int(reached.iloc[0]) if len(reached) else None
