"""Which layer of a run left its own Taylor model first, and what the training loss did around that step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from lossscope.landscape.analysis.series import FloatArray, step_series
from lossscope.probes.dynamics.outlier_layer import first_outlier_layer, usual_sizes

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["LayerRecord", "layers_of"]

_AROUND: Final = 10  # steps before and after, over which the median of the batches' losses is taken
_WINDOW: Final = 20  # samples that the usual size of a remainder is taken from


@dataclass(frozen=True)
class LayerRecord:
    """The layers of a run. Without a `layer` none stood out at any of the samples that were judged."""

    samples: int  # steps at which the layers were sampled
    judged: int  # of them, those at which a remainder could have stood out: enough samples lay before
    since: int | None = None  # optimizer step of the first of these
    layer: str | None = None  # that whose remainder stood out first
    step: int | None = None  # optimizer step at which it did
    ratio: float = float("nan")  # its remainder over its threshold at that step, above 1
    loss_before: float = float("nan")  # nats, median of the batches' losses over the steps up to the one it left at
    loss_after: float = float("nan")  # the same over the steps after it

    @property
    def rose(self) -> bool | None:
        """Whether the median loss after is above that before; None where one of them is missing."""
        known = np.isfinite(self.loss_before) and np.isfinite(self.loss_after)
        return bool(self.loss_after > self.loss_before) if known else None


def layers_of(run: Run) -> LayerRecord | None:
    """The layer whose remainder was the first to stand out, over the whole run.

    A remainder stands out at ten times its own usual size, and beyond rounding: see `first_outlier_layer`. Both are by
    convention, so a layer that stood out is where to look, not proof of a cause.

    Args:
        run: any run.

    Returns:
        The record; None where no layer was ever sampled.
    """
    rows = run.tensors.dropna(subset=["remainder"]).drop_duplicates(["step", "tensor"], keep="last")
    if not len(rows):
        return None
    table = rows.pivot(index="step", columns="tensor", values="remainder").sort_index()
    remainders, layers = table.to_numpy(dtype=np.float64), [str(name) for name in table.columns]
    steps = table.index.to_numpy(dtype=np.int64)
    judged = np.isfinite(remainders) & np.isfinite(usual_sizes(remainders, window=_WINDOW))
    able = steps[judged.any(1)]
    found = first_outlier_layer(remainders, layers, window=_WINDOW, rounding=_rounding(run, steps))
    seen = (len(steps), len(able), int(able[0]) if len(able) else None)
    if found is None:
        return LayerRecord(*seen)
    step = int(steps[found.step])
    before, after = _losses_around(run, step)
    return LayerRecord(*seen, found.layer, step, found.ratio, before, after)


def _rounding(run: Run, steps: npt.NDArray[np.int64]) -> FloatArray:
    """The rounding of each look, which grows with the loss; 0 where none is told."""
    series = step_series(run, "remainder_rounding")
    told = {int(step): float(value) for step, value in zip(series.x, series.y, strict=True) if np.isfinite(value)}
    return np.array([told.get(int(step), 0.0) for step in steps], dtype=np.float64)


def _losses_around(run: Run, step: int) -> tuple[float, float]:
    """The median loss of the steps up to one, and of those after; a step's loss is that before it."""
    series = step_series(run, "loss")
    before = (series.x > step - _AROUND) & (series.x <= step)
    after = (series.x > step) & (series.x <= step + _AROUND)
    return _median(series.y[before]), _median(series.y[after])


def _median(values: FloatArray) -> float:
    """The median of what is there; nan where nothing is."""
    there = values[np.isfinite(values)]
    return float(np.median(there)) if len(there) else float("nan")
