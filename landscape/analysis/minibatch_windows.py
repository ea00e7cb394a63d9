"""The windows in which a run was sampled with pairs of minibatches, as arrays with a column for each window."""

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
    """Squared norms of gradients at the begin of each window, for two batch sizes."""

    steps: FloatArray  # (T,) where the windows begin
    small: FloatArray  # (T,) nats^2, of one minibatch
    large: FloatArray  # (T,) nats^2, of two together
    samples: FloatArray  # (T,) samples in one minibatch


def lagged_cosines_of(run: Run) -> dict[str, LaggedCosines]:
    """The cosines of every object that was sampled, each with the same windows and lags.

    No window shares a vector with another, so that columns are as independent as the training lets them be.

    Args:
        run: any run.

    Returns:
        `gradient`, and `shear` where the optimizer ascends; empty where no later point of any window was reached. A
        window that ended early, and one in which an object has no vector, has nan there.
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
    """The squared norms of the gradients of one minibatch and of two, at every window that has both."""
    rows = run.pairs[run.pairs["object"] == "gradient"]
    rows = rows.dropna(subset=["square", "pair_square", "samples"]).drop_duplicates("step", keep="last")
    columns = (rows[name].to_numpy(dtype=np.float64) for name in ("step", "square", "pair_square", "samples"))
    return SquaredNorms(*columns)


def _cosines(rows: pd.DataFrame, lags: list[int], begins: list[int]) -> LaggedCosines:
    """The cosines of one object, a row for each lag and a column for each window."""
    values = np.full((1 + len(lags), len(begins)), np.nan)
    places, columns = {lag: row for row, lag in enumerate([0, *lags])}, {begin: k for k, begin in enumerate(begins)}
    for lag, begin, cosine in zip(rows["lag"], rows["begin"], rows["cosine"], strict=True):
        values[places[int(lag)], columns[int(begin)]] = cosine
    sizes = rows["size"].dropna()
    return LaggedCosines(tuple(lags), values, int(sizes.iloc[0]) if len(sizes) else 1, shared=False)
