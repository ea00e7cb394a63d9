"""Lag windows of a run, sampled with pairs of minibatches, as arrays with one column per window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.series import FloatArray
from lossscope.probes.dynamics.direction_memory import LaggedCosines

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["OBJECTS", "SquaredNorms", "lagged_cosines_of", "squared_norms"]

OBJECTS: Final = ("gradient", "shear")


@dataclass(frozen=True, eq=False)
class SquaredNorms:
    """Squared gradient norms at the start of each window, for two batch sizes."""

    steps: FloatArray  # (T,) first step of each window
    small: FloatArray  # (T,) nats^2, one minibatch
    large: FloatArray  # (T,) nats^2, two minibatches together
    samples: FloatArray  # (T,) samples in one minibatch


def lagged_cosines_of(run: Run) -> dict[str, LaggedCosines]:
    """Return the lagged cosines of every sampled object, all with the same windows and lags.

    Windows share no vectors, so columns are as independent as the training steps allow.

    Args:
        run: Any run.

    Returns:
        `gradient`, and `shear` if the optimizer takes a second gradient; empty if no window reached its first lag.
        Values are nan where a window ended early or an object has no vector.
    """
    rows = run.pairs
    rows = rows.assign(begin=rows["step"] - rows["lag"]).drop_duplicates(["object", "begin", "lag"], keep="last")
    lags = sorted({int(lag) for lag in rows["lag"]} - {0})
    begins = sorted({int(begin) for begin in rows["begin"]})
    if not lags:
        return {}
    found = {kind: rows[rows["object"] == kind] for kind in OBJECTS}
    return {kind: _cosines(part, lags, begins) for kind, part in found.items() if part["cosine"].notna().any()}


def squared_norms(run: Run) -> SquaredNorms:
    """Return the squared gradient norms of one minibatch and of two, for every window that has both."""
    rows = run.pairs[run.pairs["object"] == "gradient"]
    rows = rows.dropna(subset=["square", "pair_square", "samples"]).drop_duplicates("step", keep="last")
    columns = (rows[name].to_numpy(dtype=np.float64) for name in ("step", "square", "pair_square", "samples"))
    return SquaredNorms(*columns)


def _cosines(rows: pd.DataFrame, lags: list[int], begins: list[int]) -> LaggedCosines:
    """Return the cosines of one object, one row per lag and one column per window."""
    values = np.full((1 + len(lags), len(begins)), np.nan)
    places, columns = {lag: row for row, lag in enumerate([0, *lags])}, {begin: k for k, begin in enumerate(begins)}
    for lag, begin, cosine in zip(rows["lag"], rows["begin"], rows["cosine"], strict=True):
        values[places[int(lag)], columns[int(begin)]] = cosine
    sizes = rows["size"].dropna()
    return LaggedCosines(tuple(lags), values, int(sizes.iloc[0]) if len(sizes) else 1, shared=False)
