"""Series of a run, and bands of an arm over its seeds, as arrays for tables and figures.

Nothing is smoothed or filled. A missing or non-finite number is nan, drawn as a gap. Repeated measurements are
deduplicated by `Run.estimates`.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Numbers of one run, ordered by step."""

    run: str
    x: FloatArray  # (n,) steps, or the loss for `against_loss`
    y: FloatArray  # (n,) nan where missing
    error: FloatArray  # (n,) half width of the measurement's own bound; nan if it has none


@dataclass(frozen=True)
class Band:
    """Median and range of an arm over its seeds, with the measurement error kept separate."""

    arm: str
    seeds: int  # runs with at least one number
    x: FloatArray  # (n,)
    median: FloatArray  # (n,)
    low: FloatArray  # (n,) smallest seed
    high: FloatArray  # (n,) largest seed
    error: FloatArray  # (n,) largest measurement error among the seeds; nan if there is none
    steps_per_point: int  # number of steps merged into one point


def evaluations(run: Run) -> FloatArray:
    """Return the steps at which curvature was measured, ascending; empty if it never was."""
    return np.unique(_numbers(run.estimates, "step"))


def step_series(run: Run, column: str) -> Series:
    """Return a column of the steps table, one number per step."""
    return _plain(run, run.columns("steps", "step", column), column)


def synced_series(run: Run, column: str) -> Series:
    """Return a column of the steps table at the steps that took a second, adversarial gradient.

    The column is null by design at other steps, and at steps that were not sampled (where the norm of the weights is
    null too). These steps are excluded rather than treated as missing.
    """
    steps = run.columns("steps", *dict.fromkeys(("step", "synced", "weight_norm", column)))
    taken = steps["synced"].eq(True).fillna(False).astype(bool) & steps["weight_norm"].notna()
    return _plain(run, steps[taken], column)


def probe_series(run: Run, measure: str) -> Series:
    """Return a measure of the whole model, one number per evaluation, with half the width of its bound as error."""
    rows = run.estimates
    rows = rows[(rows["measure"] == measure) & rows["tensor"].isna()]
    half = (_numbers(rows, "high") - _numbers(rows, "low")) / 2
    return Series(run.name, _numbers(rows, "step"), _finite(_numbers(rows, "value")), _finite(half))


def tensor_series(run: Run, column: str, *, track: str = "matrix") -> Series:
    """Return the mean of a column over the tensors of a track, one number per step."""
    rows = run.columns("tensors", "step", "track", column)
    return _mean_by_step(run, rows[rows["track"] == track], column)


def spectrum_series(run: Run, kind: str, column: str) -> Series:
    """Return the mean of a column over the spectra of one object (`kind`), one number per step."""
    rows = run.columns("spectra", "step", "object", column)
    return _mean_by_step(run, rows[rows["object"] == kind], column)


def loss_at(run: Run, steps: FloatArray) -> FloatArray:
    """Return the training loss on the fixed curvature data after the given steps, (n,); nan where not measured."""
    found = probe_series(run, "loss")
    losses = dict(zip(found.x, found.y, strict=True))
    return np.array([losses.get(step, np.nan) for step in steps], dtype=np.float64)


def against_loss(run: Run, measure: str) -> Series:
    """Return a measure as a function of the training loss, in the order of training.

    Curvature depends on the loss level (a saturated softmax has none), so runs are compared at equal loss, not at equal
    step.
    """
    series = probe_series(run, measure)
    return Series(run.name, loss_at(run, series.x), series.y, series.error)


def over_seeds(arm: str, series: Sequence[Series], *, points: int = _POINTS) -> Band:
    """Return the median and the range over the seeds of an arm, at every step that any of them has.

    Args:
        arm: Name of the arm.
        series: One per seed; a seed that ended early contributes no further steps.
        points: Maximum number of points. Longer series are binned: a point is then the median and the range of
            `steps_per_point` neighboring steps of all seeds, so that extremes are preserved. Default: 600.

    Returns:
        The band, x ascending; nan at steps where no seed has a number.
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
    """Return a column as a series without measurement error."""
    values = _finite(_numbers(rows, column))
    return Series(run.name, _numbers(rows, "step"), values, np.full(len(values), np.nan))


def _mean_by_step(run: Run, rows: pd.DataFrame, column: str) -> Series:
    """Return the mean over the rows of each step, without missing values."""
    values = rows.assign(_value=_finite(_numbers(rows, column))).groupby("step", sort=True)["_value"].mean()
    return Series(
        run.name,
        values.index.to_numpy(dtype=np.float64),
        values.to_numpy(dtype=np.float64),
        np.full(len(values), np.nan),
    )


def _numbers(rows: pd.DataFrame, column: str) -> FloatArray:
    """Return a column as float64, with nan for null."""
    return rows[column].to_numpy(dtype=np.float64, na_value=np.nan)


def _finite(values: FloatArray) -> FloatArray:
    """Return the values, with nan for infinite ones."""
    return np.where(np.isfinite(values), values, np.nan)


def _joined(parts: Sequence[FloatArray]) -> FloatArray:
    """Concatenate the parts; empty if there are none."""
    return np.concatenate(parts) if parts else np.empty(0)


def first_step(run: Run, column: str, level: float) -> int | None:
    """Return the first recorded step at which a column of the steps table is at least `level`; None if it never was.

    Example: grokking is detected by `first_step(run, "test_accuracy", 0.99)`. The resolution is the interval at which
    the column was measured.
    """
    steps = run.columns("steps", "step", column)
    reached = steps.loc[steps[column] >= level, "step"]
    return int(reached.iloc[0]) if len(reached) else None
