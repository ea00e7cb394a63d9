"""First outlier layer of a run, by its Taylor remainder, and the training loss before and after that step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from lossscope.landscape.analysis.series import FloatArray, step_series
from lossscope.probes.dynamics.outlier_layer import first_outlier_layer, running_median

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["LayerRecord", "layers_of"]

_AROUND: Final = 10  # steps before and after in the median of the batch losses
_WINDOW: Final = 20  # samples in the running median of a remainder


@dataclass(frozen=True)
class LayerRecord:
    """First outlier layer of a run; `layer` is None if no remainder was an outlier at any judged sample."""

    samples: int  # steps at which the layers were sampled
    judged: int  # samples with enough earlier samples for an outlier to be detected
    since: int | None = None  # optimizer step of the first judged sample
    layer: str | None = None  # first outlier layer
    step: int | None = None  # optimizer step at which it was an outlier
    ratio: float = float("nan")  # its remainder over its threshold at that step, above 1
    loss_before: float = float("nan")  # nats, median of the batch losses over the steps up to and including that step
    loss_after: float = float("nan")  # the same over the steps after it

    @property
    def rose(self) -> bool | None:
        """True if the median loss after is above that before; None if either is missing."""
        known = np.isfinite(self.loss_before) and np.isfinite(self.loss_after)
        return bool(self.loss_after > self.loss_before) if known else None


def layers_of(run: Run) -> LayerRecord | None:
    """Find the layer whose remainder was the first outlier in the run.

    An outlier exceeds ten times the running median of its layer, and the rounding error: see `first_outlier_layer`. The
    factor is a convention, so an outlier layer is a candidate to investigate, not proof of a cause.

    Args:
        run: Any run.

    Returns:
        The record; None if no layer was sampled.
    """
    rows = (
        run.columns("tensors", "step", "tensor", "remainder")
        .dropna(subset=["remainder"])
        .drop_duplicates(["step", "tensor"], keep="last")
    )
    if not len(rows):
        return None
    table = rows.pivot(index="step", columns="tensor", values="remainder").sort_index()
    remainders, layers = table.to_numpy(dtype=np.float64), [str(name) for name in table.columns]
    steps = table.index.to_numpy(dtype=np.int64)
    judged = np.isfinite(remainders) & np.isfinite(running_median(remainders, window=_WINDOW))
    able = steps[judged.any(1)]
    found = first_outlier_layer(remainders, layers, window=_WINDOW, rounding=_rounding(run, steps))
    coverage = (len(steps), len(able), int(able[0]) if len(able) else None)
    if found is None:
        return LayerRecord(*coverage)
    step = int(steps[found.step])
    before, after = _losses_around(run, step)
    return LayerRecord(*coverage, found.layer, step, found.ratio, before, after)


def _rounding(run: Run, steps: npt.NDArray[np.int64]) -> FloatArray:
    """Return the rounding error of each sample, which grows with the loss; 0 where none was recorded."""
    series = step_series(run, "remainder_rounding")
    recorded = {int(step): float(value) for step, value in zip(series.x, series.y, strict=True) if value >= 0}
    return np.array([recorded.get(int(step), 0.0) for step in steps], dtype=np.float64)


def _losses_around(run: Run, step: int) -> tuple[float, float]:
    """Return the median loss of the steps up to one, and of those after; the loss of a step is measured before it."""
    series = step_series(run, "loss")
    before = (series.x > step - _AROUND) & (series.x <= step)
    after = (series.x > step) & (series.x <= step + _AROUND)
    return _median(series.y[before]), _median(series.y[after])


def _median(values: FloatArray) -> float:
    """Return the median of the finite values; nan if there is none."""
    there = values[np.isfinite(values)]
    return float(np.median(there)) if len(there) else float("nan")
