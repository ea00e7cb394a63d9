"""Spectral density of a run, and the number of eigenvalues per decade of a signed logarithmic axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from lossscope.landscape.analysis.series import FloatArray
from lossscope.landscape.storage.deduplicate import of_one_function

if TYPE_CHECKING:
    import pandas as pd

    from lossscope.landscape.run import Run

__all__ = ["Density", "SignedLog", "densities", "last_density"]

_LINEAR_DECADES: Final = 1 / (1 - 0.1)  # length, in decades, of each linear half of matplotlib's symlog axis
_INNER: Final = 16  # positions at which a density is averaged between two edges


@dataclass(frozen=True)
class SignedLog:
    """Axis that is linear up to `threshold` on both sides of zero and logarithmic beyond: matplotlib's `symlog`."""

    threshold: float

    def place(self, values: FloatArray) -> FloatArray:
        """Return the positions of values, in decades from zero."""
        sizes = np.abs(values) / self.threshold
        far = _LINEAR_DECADES + np.log10(np.maximum(sizes, 1.0))
        return np.where(sizes > 1, np.sign(values) * far, values / self.threshold * _LINEAR_DECADES)

    def value(self, places: FloatArray) -> FloatArray:
        """Return the values at positions: the inverse of `place`."""
        sizes = np.abs(places)
        far = 10.0 ** np.maximum(sizes - _LINEAR_DECADES, 0.0)
        return self.threshold * np.where(sizes > _LINEAR_DECADES, np.sign(places) * far, places / _LINEAR_DECADES)


@dataclass(frozen=True)
class Density:
    """Quadrature of a spectral density, as recorded in a run."""

    step: int
    nodes: FloatArray  # (k,) ascending
    weights: FloatArray  # (b, k) one row per random vector, summing to 1
    settled: NDArray[np.bool_]  # (k,) True for nodes that are single converged eigenvalues
    size: int  # total number of eigenvalues

    @property
    def masses(self) -> FloatArray:
        """`(k,)`: number of eigenvalues represented by each node; they sum to `size`."""
        rest = np.where(self.settled, 0.0, self.weights.mean(0))
        left = self.size - self.settled.sum()
        return np.where(self.settled, 1.0, rest * (left / rest.sum() if rest.sum() > 0 else 0.0))

    def counts(self, axis: SignedLog, edges: FloatArray, width: float) -> tuple[FloatArray, FloatArray]:
        """Estimate the number of eigenvalues between positions of the axis, single ones included.

        Args:
            axis: The axis.
            edges: `(p + 1,)`, equally spaced positions on it.
            width: As for `bulk`.

        Returns:
            Number and a bound of its standard error, `(p,)` each: errors of neighboring positions add up at most.
        """
        inner = np.linspace(0, 1, _INNER + 1)[:-1] + 0.5 / _INNER
        apart = np.diff(edges)
        number, error = self.bulk(axis, (edges[:-1, None] + apart[:, None] * inner).ravel(), width)
        single, _ = np.histogram(axis.place(self.nodes[self.settled]), edges)
        shape = (len(apart), _INNER)
        return number.reshape(shape).mean(1) * apart + single, error.reshape(shape).mean(1) * apart

    def bulk(self, axis: SignedLog, places: FloatArray, width: float) -> tuple[FloatArray, FloatArray]:
        r"""Estimate the number of eigenvalues per decade of the axis, without single ones, with its standard error.

        For b vectors uniform on the sphere the estimated sum of f over m eigenvalues has the variance
        :math:`\frac2b (\sum f^2 - (\sum f)^2 / m)`; both sums are computed from the same quadrature.

        Args:
            axis: The axis.
            places: `(p,)`, positions on it.
            width: Minimum standard deviation, in decades, of the Gaussian that smooths a node. If half the distance
                between its neighbors is larger, that is used, since the node represents the eigenvalues between them.

        Returns:
            Number and standard error, `(p,)` each.
        """
        mass = np.where(self.settled, 0.0, self.masses)
        centers = axis.place(self.nodes)
        widths = np.maximum(width, _half_distance(centers))
        bumps = np.exp(-(((places[:, None] - centers) / widths) ** 2) / 2) / (widths * math.sqrt(2 * math.pi))
        number = bumps @ mass
        left = max(float(mass.sum()), 1.0)
        variance = 2 * (bumps**2 @ mass - number**2 / left) / len(self.weights)
        return number, np.sqrt(np.maximum(variance, 0.0))


def _half_distance(places: FloatArray) -> FloatArray:
    """Return half the mean distance from each position to its two neighbors; 0 at both ends."""
    half = np.zeros(len(places))
    half[1:-1] = (places[2:] - places[:-2]) / 4
    return half


def densities(run: Run) -> tuple[Density, ...]:
    """Return the densities measured on the data set of the run's other estimates, by step.

    A density whose nodes are not finite or whose rows do not fit together is left out.
    """
    found = (_density(rows) for _, rows in _measured(run).groupby("step"))
    return tuple(one for one in found if one is not None)


def last_density(run: Run) -> Density | None:
    """Return the last density measured on the data set of the run's other estimates; None if there is none.

    A density whose nodes are not finite or whose rows do not fit together is none.
    """
    rows = _measured(run)
    return _density(rows[rows["step"] == rows["step"].max()]) if len(rows) else None


def _measured(run: Run) -> pd.DataFrame:
    """Return the rows of the densities on the data set of the run's other estimates."""
    rows = run.densities.dropna(subset=["size"])
    if not len(rows):
        return rows
    named = rows.assign(measure="density", parameters=rows["size"])
    return rows[of_one_function(named, run.manifest.get("data_hash"))]


def _density(rows: pd.DataFrame) -> Density | None:
    """Return the density of the rows of one step; if it was measured twice, the last one written."""
    begins = rows["probe"].eq(0)
    rows = rows[begins.cumsum() == begins.sum()]
    nodes, settled, size = rows["nodes"].iloc[0], rows["settled"].iloc[0], int(rows["size"].iloc[0])
    weights = [np.asarray(one, dtype=np.float64) for one in rows["weights"]]
    if size < 1 or settled is None or not np.size(nodes) or not np.isfinite(nodes).all():
        return None
    if any(one.shape != nodes.shape or not np.isfinite(one).all() for one in (settled, *weights)):
        return None
    return Density(int(rows["step"].iloc[0]), nodes, np.array(weights), settled > 0, size)
