"""Minibatch noise in the gradients of a run: noise scale, and spectral order corrected for noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.minibatch_windows import SquaredNorms, squared_norms
from lossscope.landscape.analysis.series import FloatArray
from lossscope.probes.dynamics.gradient_noise import NoiseScale, noise_scale
from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.block_bootstrap import block_bootstrap, block_length, quotient
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["NoiseRecord", "NoiseScale", "SpectralOrder", "mean_order", "noise_of", "order_of"]

_MATRIX: Final = ["tensor", "slice"]
_COLUMNS: Final = ("step", "tensor", "slice", "object", "values.length", "entropy_energy", "excess_order")
_ORDERS: Final = {"batch_gradient": "batch", "pair_gradient": "pair", "gradient": "own"}


@dataclass(frozen=True)
class NoiseRecord:
    """Gradient noise scale of a run; `why` gives the reason when there is none."""

    windows: int
    samples: float  # in one minibatch
    whole: NoiseScale | None = None  # over all windows
    late: NoiseScale | None = None  # over the windows in the second half of the run; None if there are too few
    why: str = ""


@dataclass(frozen=True)
class SpectralOrder:
    """Spectral order of a gradient matrix: energy entropy of white noise minus that of the matrix, in nats."""

    windows: int  # or samples, without minibatches
    null: float  # energy entropy of white noise of this shape, nats; upper limit of the order
    own: Estimate  # gradient of the training step, at the same steps where it was sampled
    batch: Estimate  # gradient of one probe minibatch
    pair: Estimate  # gradient of two minibatches together
    infinite: Estimate  # extrapolated to an infinite batch


def noise_of(run: Run, *, draws: int = 2000) -> NoiseRecord | None:
    """Estimate the gradient noise scale of a run from the gradient norms at the start of each window.

    Args:
        run: Any run.
        draws: Number of bootstrap draws over windows.

    Returns:
        The record, see `noise_scale`; None if no window was sampled.
    """
    found = squared_norms(run)
    if not len(found.steps):
        return None
    samples = np.unique(found.samples)
    if len(samples) > 1:
        return NoiseRecord(len(found.steps), math.nan, why="its minibatches differ in size")
    count = len(found.steps)
    known = np.isfinite(found.small) & np.isfinite(found.large)
    late = known & (found.steps > found.steps[-1] / 2)
    try:
        whole = _scale(found, np.ones(count, dtype=bool), draws)
    except ProbeError as error:
        return NoiseRecord(count, float(samples[0]), why=str(error))
    half = _scale(found, late, draws) if 2 <= late.sum() < known.sum() else None
    return NoiseRecord(count, float(samples[0]), whole, half)


def order_of(run: Run, *, draws: int = 2000) -> dict[str, SpectralOrder]:
    r"""Estimate the spectral order of each gradient matrix, corrected for minibatch noise.

    If the energy entropy H is linear in 1/B, two batch sizes determine that of the infinite batch,

    .. math:: H_\infty = 2 H_{2B} - H_B.

    This holds if the contribution of 1/B is small. Noise that fills the whole spectrum makes H concave in 1/B, so that
    :math:`H_\infty` is overestimated and the order underestimated. If the gradient of a batch is the mean over few
    samples, each of rank one, a small batch has less entropy than a large one, and the extrapolation increases it.

    Args:
        run: Any run.
        draws: Number of bootstrap draws over windows.

    Returns:
        The order of each matrix by name, `name[3]` for a slice, averaged over the windows; if no minibatches were
        sampled, only that of the training gradients. Empty if nothing was sampled.
    """
    rows = _spectra(run)
    return {_name(key): _order(part, draws) for key, part in rows.groupby(_MATRIX, sort=False)} if len(rows) else {}


def mean_order(run: Run, *, draws: int = 2000) -> SpectralOrder | None:
    """Estimate the mean spectral order over all matrices of a run: see `order_of`.

    Args:
        run: Any run.
        draws: Number of bootstrap draws over windows, which are shared by all matrices.

    Returns:
        The mean order, with the mean of `null`; None if nothing was sampled.
    """
    rows = _spectra(run)
    return _order(rows, draws) if len(rows) else None


def _scale(found: SquaredNorms, used: np.ndarray[tuple[int], np.dtype[np.bool_]], draws: int) -> NoiseScale:
    """Estimate the noise scale over some of the windows."""
    batch = float(found.samples[0])
    small, large = found.small[used].tolist(), found.large[used].tolist()
    return noise_scale(small, large, small_batch=batch, large_batch=2 * batch, draws=draws)


def _spectra(run: Run) -> pd.DataFrame:
    """Return the gradient spectra at the steps with sampled minibatches, or at all steps if there are none."""
    kinds = run.columns("spectra", "object", "excess_order")
    if not (kinds["object"].isin(list(_ORDERS)) & kinds["excess_order"].notna()).any():
        return run.columns("spectra", *_COLUMNS).iloc[:0]
    rows = run.columns("spectra", *_COLUMNS)
    rows = rows[rows["object"].isin(list(_ORDERS))].dropna(subset=["excess_order"])
    sampled = rows.loc[rows["object"] == "batch_gradient", "step"].unique()
    rows = rows[rows["step"].isin(sampled)] if len(sampled) else rows
    slices = rows["slice"].to_numpy(dtype=np.float64, na_value=-1.0)
    return rows.assign(slice=slices).drop_duplicates([*_MATRIX, "step", "object"], keep="last")


def _order(rows: pd.DataFrame, draws: int) -> SpectralOrder:
    """Estimate the order of one matrix, or the mean over several, averaged first per window and then over windows."""
    wide = rows.pivot(index=["step", *_MATRIX], columns="object", values="excess_order")
    wide = wide.reindex(columns=list(_ORDERS)).rename(columns=_ORDERS)
    wide["infinite"] = 2 * wide["pair"] - wide["batch"]
    means = wide.groupby("step", sort=True).mean()
    found = {name: _mean(means[name].to_numpy(dtype=np.float64), draws) for name in means.columns}
    return SpectralOrder(len(means), _null(rows), found["own"], found["batch"], found["pair"], found["infinite"])


def _null(rows: pd.DataFrame) -> float:
    """Return the white-noise entropy, excess order plus entropy; the mean if there are several matrices."""
    ranks = rows["values.length"].to_numpy(dtype=np.float64)
    nulls = rows["excess_order"] + rows["entropy_energy"] * np.log(ranks)
    of_each = nulls.groupby([rows[name] for name in _MATRIX])
    return float(of_each.mean().mean()) if (of_each.max() - of_each.min() < 1e-6).all() else math.nan


def _mean(series: FloatArray, draws: int) -> Estimate:
    """Estimate the mean over the windows; missing if no window has a value."""
    known = np.isfinite(series)
    if not known.any():
        return exact_estimate(math.nan)
    there = series[known]
    rows = np.stack([there, np.ones(len(there))])
    return block_bootstrap(rows, quotient, block=block_length(there), draws=draws)


def _name(key: Iterable[object]) -> str:
    """Return the name of a matrix: its tensor, with the slice index of a batched one."""
    tensor, part = key
    return str(tensor) if float(str(part)) < 0 else f"{tensor}[{float(str(part)):.0f}]"
